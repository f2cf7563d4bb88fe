-- Checkpoints of runs, and outcomes of deferred values.

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

-- Written in the transaction of a run's commit, after commit_runs, and only if that wrote the run now.
--
-- A commit whose outcome nobody knows is sent again, and the first one may still be under way. Where the run leaves a
-- state or a reply, commit_runs tells the two apart. Where it leaves nothing but a step, the step itself does: the
-- second insert of its name fails the whole transaction.
--
-- The singleton's row is locked before anything else of it. remove_abandoned locks in the same order and passes over
-- what is locked, so neither waits for the other.
create function write_checkpoints(
    its_type text, its_id text, its_message bigint, names text[], bodies bytea[], closes boolean,
    next_message bigint, next_attempts integer
) returns boolean
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    if closes and its_message = 0 then
        update singleton as s
        set generation = s.generation + 1
        where s.singleton = its_type and s.entity_id = its_id;
    end if;

    -- The message made progress. Waiting for days over many deploys does not make it poison; one that kills its runner
    -- between two steps is still given up.
    if its_message <> 0 then
        update message as m set attempts = 0, deliver_at = null where m.message_id = its_message;
    end if;

    if closes then
        delete from checkpoint as c
        where c.message_id = its_message and c.entity_type = its_type and c.entity_id = its_id;

        -- Outcomes that belong to a message stay until remove_orphans: whoever completes it late is told that another
        -- outcome counts.
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
    set attempts = next_attempts
    where m.message_id = next_message and coalesce(m.deliver_at, '-infinity') <= clock_timestamp();
    return found;
end
$$;
comment on function write_checkpoints is
    'Writes the checkpoints of a run that commit_runs has just written in this transaction; returns whether its next '
    'run was counted. A message that made progress has its attempts counted from 0, and is due at once.';

create function remove_orphans(older_than double precision, most integer) returns bigint
language plpgsql set plan_cache_mode = force_generic_plan as $$
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
