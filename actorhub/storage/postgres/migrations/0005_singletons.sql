-- Checkpoints of runs, outcomes of deferred values, singletons and their schedules.

create table checkpoint (
    message_id bigint not null,
    entity_type text collate "C" not null,
    entity_id text collate "C" not null,
    name text collate "C" not null,
    created_at timestamptz not null default clock_timestamp(),
    data bytea not null,
    primary key (message_id, entity_type, entity_id, name)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
comment on table checkpoint is 'Results of steps, until the message is settled or the singleton saves.';
comment on column checkpoint.message_id is 'The durable message that runs; 0: the run of a singleton.';
create index checkpoint_by_age on checkpoint (created_at) where message_id <> 0;

create table completion (
    token_hash bytea primary key,
    message_id bigint not null,
    kind smallint not null check (kind between 0 and 1),
    entity_type text collate "C" not null,
    entity_id text collate "C" not null,
    created_at timestamptz not null default clock_timestamp(),
    data bytea not null
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
comment on table completion is 'Outcomes of deferred values, until what waits for them is history.';
comment on column completion.kind is '0 value, 1 error.';
create index completion_by_scope on completion (message_id, entity_type, entity_id);
create index completion_by_age on completion (created_at) where message_id <> 0;

-- Times that a leader writes are Unix times, kept to the last bit; the views show them as timestamps.
create table singleton (
    singleton text collate "C" primary key,
    entity_id text collate "C" not null,
    shard_group text collate "C" not null,
    shard_number integer not null,
    epoch bigint not null,
    incarnation text not null,
    leader text not null,
    since timestamptz not null,
    heartbeat_at timestamptz,
    state_ttl double precision,
    generation bigint not null default 0,
    executions bigint not null default 0,
    last_execution text not null default '',
    last_execution_at double precision,
    last_duration double precision,
    last_error text not null default '',
    last_error_at double precision,
    state_errors bigint not null default 0,
    state_error text not null default '',
    body text not null default ''
) with (fillfactor = 50);
comment on table singleton is 'Singletons: who leads each, and what its leader knows of it.';
comment on column singleton.leader is 'Address of the leader; empty after it left gracefully.';
comment on column singleton.state_ttl is 'Seconds after which a state that was not written is forgotten.';
comment on column singleton.generation is 'How often the checkpoints of its run became history.';

create table cron_schedule (
    singleton text collate "C" not null,
    name text collate "C" not null,
    declared text not null,
    expression text not null,
    timezone text not null,
    created_at double precision not null,
    paused boolean not null,
    edited boolean not null,
    revision bigint not null,
    next_at double precision,
    last_at double precision,
    last_started_at double precision,
    last_finished_at double precision,
    last_duration double precision,
    last_error text not null,
    runs bigint not null,
    failures bigint not null,
    failures_in_a_row bigint not null,
    skipped bigint not null,
    last_skip text not null,
    primary key (singleton, name)
) with (fillfactor = 50);
comment on table cron_schedule is 'Schedules of singletons.';
comment on column cron_schedule.declared is 'Expression and time zone as the code has them, with a bar between.';
comment on column cron_schedule.revision is 'Grows with each edit.';

create table cluster_secret (
    only_row boolean primary key default true check (only_row),
    secret bytea not null
);
comment on table cluster_secret is 'What the cluster signs tokens with.';

create view singletons as
select
    s.singleton,
    s.entity_id,
    s.shard_group || ':' || s.shard_number as shard,
    nullif(s.leader, '') as leader,
    s.incarnation,
    s.epoch,
    s.since,
    s.heartbeat_at,
    clock_timestamp() - s.heartbeat_at as silent_for,
    s.executions,
    nullif(s.last_execution, '') as last_execution,
    to_timestamp(s.last_execution_at) as last_execution_at,
    make_interval(secs => s.last_duration) as last_duration,
    nullif(s.last_error, '') as last_error,
    to_timestamp(s.last_error_at) as last_error_at,
    nullif(s.body, '') as body,
    x.version as state_version,
    octet_length(x.data) as state_bytes,
    x.updated_at as state_updated_at,
    make_interval(secs => s.state_ttl) as state_ttl,
    s.state_errors,
    nullif(s.state_error, '') as state_error,
    (
        select count(*)
        from checkpoint as c
        where c.message_id = 0 and c.entity_type = s.singleton and c.entity_id = s.entity_id
    ) as checkpoints
from singleton as s
left join entity_state as x
    on x.entity_type = s.singleton collate "default" and x.entity_id = s.entity_id collate "default"
order by s.singleton;
comment on view singletons is 'Singletons, who leads them and how they are, for people.';
comment on column singletons.leader is 'Null: it left gracefully, and nobody leads yet.';
comment on column singletons.silent_for is 'Null: it has never shown that it is alive.';
comment on column singletons.body is 'What its run does: running, returned, failed; null: it has none.';
comment on column singletons.checkpoints is 'Steps of its run that are not history yet.';

create view crons as
select
    c.singleton,
    c.name,
    c.expression,
    c.timezone,
    c.paused,
    c.edited,
    to_timestamp(c.next_at) as next_at,
    to_timestamp(c.next_at) - clock_timestamp() as due_in,
    to_timestamp(c.last_at) as last_at,
    to_timestamp(c.last_started_at) as last_started_at,
    to_timestamp(c.last_finished_at) as last_finished_at,
    make_interval(secs => c.last_duration) as last_duration,
    nullif(c.last_error, '') as last_error,
    c.runs,
    c.failures,
    c.failures_in_a_row,
    c.skipped,
    nullif(c.last_skip, '') as last_skip,
    c.revision,
    c.declared,
    to_timestamp(c.created_at) as created_at
from cron_schedule as c
order by c.singleton, c.name;
comment on view crons is 'Schedules of singletons, for people.';
comment on column crons.edited is 'Somebody set expression or time zone at run time.';
comment on column crons.next_at is 'Null: not planned yet, or paused.';
comment on column crons.last_at is 'The instant that ran last, whatever became of it.';
comment on column crons.failures is 'Instants given up after their last attempt.';
comment on column crons.last_skip is 'Why the last ones were not run, and which.';

-- The shared fence is held until the transaction ends, as in commit_states.
create function still_owns(fence bigint, committer text, its_group text, its_number integer, its_epoch bigint)
returns boolean
language plpgsql set search_path from current as $$
begin
    if fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    return exists (
        select from shard as s
        where s.shard_group = its_group and s.number = its_number and s.epoch = its_epoch
            and s.owner_incarnation = committer
    );
end
$$;
comment on function still_owns is 'Whether it owns the shard at that epoch, and will until the transaction ends.';

-- Of a singleton's row first, then of the rest: remove_abandoned passes over a row that is locked. A step that is stored
-- already makes the whole transaction fail: it is what lets one of a commit whose outcome nobody knew and its twin pass.
create function write_notes(
    its_type text, its_id text, its_message bigint, names text[], bodies bytea[], closes boolean,
    next_message bigint, next_count integer
) returns boolean
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    if closes and its_message = 0 then
        update singleton as s
        set generation = s.generation + 1
        where s.singleton = its_type and s.entity_id = its_id;
    end if;

    if its_message <> 0 then
        update message as m set attempts = 0, deliver_at = null where m.message_id = its_message;
    end if;

    if closes then
        delete from checkpoint as c
        where c.message_id = its_message and c.entity_type = its_type and c.entity_id = its_id;

        -- Those of a message stay for remove_orphans: who completes late learns that another outcome counts.
        delete from completion as c
        where its_message = 0 and c.message_id = its_message and c.entity_type = its_type and c.entity_id = its_id;
    elsif cardinality(names) > 0 then
        insert into checkpoint (message_id, entity_type, entity_id, name, data)
        select its_message, its_type, its_id, r.name, r.data
        from unnest(names, bodies) as r (name, data);
    end if;

    if next_message is null then
        return false;
    end if;
    update message as m
    set attempts = next_count
    where m.message_id = next_message and coalesce(m.deliver_at, '-infinity') <= clock_timestamp();
    return found;
end
$$;
comment on function write_notes is
    'Writes the notes of a run that commit_runs has just written in this transaction; returns whether its next run was '
    'counted. What made progress has its attempts counted anew, and waits in line.';

create function remove_orphans(older_than double precision, most integer) returns bigint
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    removed bigint;
    others bigint;
begin
    delete from checkpoint as c
    using (
        select y.message_id, y.entity_type, y.entity_id, y.name
        from checkpoint as y
        left join message as m on m.message_id = any (array[y.message_id])
        left join dead_letter as d on d.message_id = any (array[y.message_id])
        where y.message_id <> 0 and y.created_at < clock_timestamp() - make_interval(secs => older_than)
            and m.message_id is null and d.message_id is null
        order by y.created_at
        limit most
    ) as gone
    where c.message_id = gone.message_id and c.entity_type = gone.entity_type and c.entity_id = gone.entity_id
        and c.name = gone.name;
    get diagnostics removed = row_count;

    delete from completion as c
    using (
        select y.token_hash
        from completion as y
        left join message as m on m.message_id = any (array[y.message_id])
        left join dead_letter as d on d.message_id = any (array[y.message_id])
        where y.message_id <> 0 and y.created_at < clock_timestamp() - make_interval(secs => older_than)
            and m.message_id is null and d.message_id is null
        order by y.created_at
        limit most - removed
    ) as gone
    where c.token_hash = gone.token_hash;
    get diagnostics others = row_count;

    return removed + others;
end
$$;
comment on function remove_orphans is
    'Forgets checkpoints and outcomes of messages that are neither pending nor dead letters.';

create function lead_singleton(
    fence bigint, committer text, its_group text, its_number integer, its_epoch bigint,
    its_name text, its_entity_id text, its_address text, its_ttl double precision
) returns setof singleton
language plpgsql set search_path from current as $$
begin
    if not still_owns(fence, committer, its_group, its_number, its_epoch) then
        return;
    end if;

    return query
    insert into singleton as s (
        singleton, entity_id, shard_group, shard_number, epoch, incarnation, leader, since, state_ttl
    )
    values (
        its_name, its_entity_id, its_group, its_number, its_epoch, committer, its_address, clock_timestamp(), its_ttl
    )
    on conflict (singleton) do update
    set entity_id = excluded.entity_id, shard_group = excluded.shard_group, shard_number = excluded.shard_number,
        epoch = excluded.epoch, incarnation = excluded.incarnation, leader = excluded.leader,
        since = case
            when s.incarnation = excluded.incarnation and s.epoch = excluded.epoch and s.leader <> '' then s.since
            else excluded.since
        end,
        state_ttl = excluded.state_ttl
    returning s.*;
end
$$;
comment on function lead_singleton is 'Writes who leads; nothing where that is not the shard''s owner any more.';

create function note_singleton(
    fence bigint, committer text, its_group text, its_number integer, its_epoch bigint,
    its_name text, its_entity_id text, execution jsonb, heartbeat boolean, leaves boolean
) returns boolean
language plpgsql set search_path from current as $$
declare
    e singleton := jsonb_populate_record(null::singleton, execution);
begin
    if not still_owns(fence, committer, its_group, its_number, its_epoch) then
        return false;
    end if;

    update singleton as s
    set executions = e.executions, last_execution = e.last_execution, last_execution_at = e.last_execution_at,
        last_duration = e.last_duration, last_error = e.last_error, last_error_at = e.last_error_at,
        state_errors = e.state_errors, state_error = e.state_error, body = e.body,
        heartbeat_at = case when heartbeat then clock_timestamp() else s.heartbeat_at end,
        leader = case when leaves then '' else s.leader end
    where s.singleton = its_name and s.entity_id = its_entity_id;
    return true;
end
$$;
comment on function note_singleton is 'Writes what a leader knows; false where it is not the shard''s owner any more.';

create function keep_schedule(
    fence bigint, committer text, its_group text, its_number integer, its_epoch bigint, wanted jsonb
) returns setof cron_schedule
language plpgsql set search_path from current as $$
declare
    w cron_schedule := jsonb_populate_record(null::cron_schedule, wanted);
begin
    if not still_owns(fence, committer, its_group, its_number, its_epoch) then
        return;
    end if;

    return query
    insert into cron_schedule as c select w.*
    on conflict (singleton, name) do update
    set declared = excluded.declared, expression = excluded.expression, timezone = excluded.timezone,
        paused = excluded.paused, edited = excluded.edited, next_at = excluded.next_at, last_at = excluded.last_at,
        last_started_at = excluded.last_started_at, last_finished_at = excluded.last_finished_at,
        last_duration = excluded.last_duration, last_error = excluded.last_error, runs = excluded.runs,
        failures = excluded.failures, failures_in_a_row = excluded.failures_in_a_row, skipped = excluded.skipped,
        last_skip = excluded.last_skip
    where c.revision = excluded.revision
    returning c.*;

    if not found then
        return query select c.* from cron_schedule as c where c.singleton = w.singleton and c.name = w.name;
    end if;
end
$$;
comment on function keep_schedule is
    'Writes a schedule unless it was edited meanwhile; returns what is stored, nothing where the shard was lost.';

create function remove_schedules(
    fence bigint, committer text, its_group text, its_number integer, its_epoch bigint, its_name text, names text[]
) returns boolean
language plpgsql set search_path from current as $$
begin
    if not still_owns(fence, committer, its_group, its_number, its_epoch) then
        return false;
    end if;

    delete from cron_schedule as c where c.singleton = its_name and c.name = any (names);
    return true;
end
$$;
comment on function remove_schedules is 'Deletes schedules; false where the leader is not the shard''s owner any more.';

-- Row locks that somebody else has are passed over: who commits a state locks that first, who closes a run's checkpoints
-- the singleton, and neither may wait for this while it waits for them.
create function remove_abandoned() returns integer
language plpgsql set search_path from current as $$
declare
    lost record;
    state_is_old boolean;
    removed integer := 0;
begin
    for lost in
        select
            s.singleton as name, s.entity_id as id,
            clock_timestamp() - make_interval(secs => s.state_ttl) as kept_since
        from singleton as s
        where greatest(s.since, s.heartbeat_at) < clock_timestamp() - make_interval(secs => s.state_ttl)
            and not exists (
                select from runner as r
                where s.leader <> '' and r.incarnation = s.incarnation
                    and r.heartbeat_at > clock_timestamp() - interval '10 seconds'
            )
        for update of s skip locked
    loop
        select x.updated_at < lost.kept_since into state_is_old
        from entity_state as x
        where x.entity_type = lost.name collate "default" and x.entity_id = lost.id collate "default"
        for update skip locked;
        if not found then
            state_is_old := not exists (
                select from entity_state as x
                where x.entity_type = lost.name collate "default" and x.entity_id = lost.id collate "default"
            );
        end if;
        continue when not state_is_old;

        delete from entity_state as x
        where x.entity_type = lost.name collate "default" and x.entity_id = lost.id collate "default";
        delete from checkpoint as c where c.message_id = 0 and c.entity_type = lost.name and c.entity_id = lost.id;
        delete from completion as c where c.message_id = 0 and c.entity_type = lost.name and c.entity_id = lost.id;
        delete from cron_schedule as c where c.singleton = lost.name;
        delete from singleton as s where s.singleton = lost.name;
        removed := removed + 1;
    end loop;
    return removed;
end
$$;
comment on function remove_abandoned is
    'Deletes singletons with a state_ttl that nobody led, and whose state nobody wrote, for longer than that.';

-- As before, and it writes the number of the run that failed: since checkpoints set the count back, it may be behind.
create or replace function fail_runs(
    fence bigint, committer text, message_ids bigint[], groups text[], numbers integer[], epochs bigint[],
    pauses double precision[], counts integer[], errors bytea[], error_types text[], error_texts text[],
    tracebacks text[]
) returns double precision[]
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    if fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    update message as m
    set deliver_at = clock_timestamp() + make_interval(secs => r.pause),
        attempts = r.a,
        history = longer_history(m.history, r.a, r.kind, r.said, r.trace)
    from unnest(message_ids, groups, numbers, epochs, pauses, counts, error_types, error_texts, tracebacks)
        as r (m, g, n, e, pause, a, kind, said, trace)
    join shard as s on s.shard_group = any (array[r.g]) and s.number = any (array[r.n])
    where m.message_id = any (array[r.m]) and r.pause is not null and s.epoch = r.e and s.owner_incarnation = committer
        and not (m.deliver_at is not null and m.history is not null and (m.history -> -1 ->> 'attempt')::integer = r.a);

    with gone as (
        delete from message as m
        using unnest(message_ids, groups, numbers, epochs, pauses, counts, errors, error_types, error_texts, tracebacks)
            as r (m, g, n, e, pause, a, error, kind, said, trace)
        join shard as s on s.shard_group = any (array[r.g]) and s.number = any (array[r.n])
        where m.message_id = any (array[r.m]) and r.pause is null and s.epoch = r.e and s.owner_incarnation = committer
        returning m.*, r.e, r.a, r.error, r.kind, r.said, r.trace
    )
    insert into dead_letter (
        message_id, epoch, created_at, died_at, deliver_at, attempts, shard_number, shard_group, entity_type, entity_id,
        handler, body, headers, key, key_hash, history, error
    )
    select
        x.message_id, x.e, x.created_at, clock_timestamp(), x.deliver_at, x.a, x.shard_number, x.shard_group,
        x.entity_type, x.entity_id, x.handler, x.body, x.headers, x.key, x.key_hash,
        longer_history(x.history, x.a, x.kind, x.said, x.trace), x.error
    from gone as x;

    return (
        select array_agg(
            case
                when r.pause is null and d.epoch = r.e then 0
                when (s.epoch = r.e and s.owner_incarnation = committer) is not true then -1
                when r.pause is not null and m.message_id is not null
                    then coalesce(extract(epoch from m.deliver_at)::double precision, 0)
                else -2
            end
            order by r.place
        )
        from unnest(message_ids, groups, numbers, epochs, pauses) with ordinality as r (m, g, n, e, pause, place)
        left join shard as s on s.shard_group = any (array[r.g]) and s.number = any (array[r.n])
        left join message as m on m.message_id = any (array[r.m])
        left join dead_letter as d on d.message_id = any (array[r.m])
    );
end
$$;
