-- Singletons and their schedules. What a leader writes is refused once its shard has another owner (hold_ownership).

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
    planned_from double precision,
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
comment on column cron_schedule.planned_from is 'Null: it has not been planned since it was made, changed or resumed.';

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
comment on column crons.last_at is 'The fire time that ran last, whatever became of it.';
comment on column crons.failures is 'Fire times given up after their last attempt.';
comment on column crons.last_skip is 'Why the last ones were not run, and which.';

create function lead_singleton(
    fence bigint, committer text, its_group text, its_number integer, its_epoch bigint,
    its_name text, its_entity_id text, its_address text, its_ttl double precision
) returns setof singleton
language plpgsql as $$
begin
    if not hold_ownership(fence, committer, its_group, its_number, its_epoch) then
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
comment on function lead_singleton is 'Writes who leads; returns nothing where that runner no longer owns the shard.';

create function record_singleton(
    fence bigint, committer text, its_group text, its_number integer, its_epoch bigint,
    its_name text, its_entity_id text, execution jsonb, heartbeat boolean, leaves boolean
) returns boolean
language plpgsql as $$
declare
    e singleton := jsonb_populate_record(null::singleton, execution);
begin
    if not hold_ownership(fence, committer, its_group, its_number, its_epoch) then
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
comment on function record_singleton is 'Writes what a leader knows; false where it no longer owns the shard.';

-- The leader's write and an operator's edit may cross. An edit raises the revision; a leader that knows an earlier one
-- changes nothing, and goes on from the row that it gets back.
create function keep_schedule(
    fence bigint, committer text, its_group text, its_number integer, its_epoch bigint, wanted jsonb
) returns setof cron_schedule
language plpgsql as $$
declare
    w cron_schedule := jsonb_populate_record(null::cron_schedule, wanted);
begin
    if not hold_ownership(fence, committer, its_group, its_number, its_epoch) then
        return;
    end if;

    return query
    insert into cron_schedule as c select w.*
    on conflict (singleton, name) do update
    set declared = excluded.declared, expression = excluded.expression, timezone = excluded.timezone,
        paused = excluded.paused, edited = excluded.edited, planned_from = excluded.planned_from,
        next_at = excluded.next_at, last_at = excluded.last_at, last_started_at = excluded.last_started_at,
        last_finished_at = excluded.last_finished_at, last_duration = excluded.last_duration,
        last_error = excluded.last_error, runs = excluded.runs, failures = excluded.failures,
        failures_in_a_row = excluded.failures_in_a_row, skipped = excluded.skipped, last_skip = excluded.last_skip
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
language plpgsql as $$
begin
    if not hold_ownership(fence, committer, its_group, its_number, its_epoch) then
        return false;
    end if;

    delete from cron_schedule as c where c.singleton = its_name and c.name = any (names);
    return true;
end
$$;
comment on function remove_schedules is 'Deletes schedules; false where the leader no longer owns the shard.';

-- Rows that somebody else has locked are passed over. A commit that closes a run's checkpoints locks the state's row
-- first and the singleton's second; this function comes from the other side, so if it waited, the two could wait for
-- each other. What is locked is in use, so it is not abandoned.
create function remove_abandoned() returns integer
language plpgsql as $$
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
