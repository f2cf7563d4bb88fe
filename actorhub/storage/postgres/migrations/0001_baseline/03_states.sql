-- Committed state of entities.

create table entity_state (
    version bigint not null,
    epoch bigint not null,
    updated_at timestamptz not null,
    shard_number integer not null,
    shard_group text not null,
    entity_type text not null,
    entity_id text not null,
    data bytea not null,
    primary key (entity_type, entity_id)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
comment on table entity_state is 'Committed state of entities: versions are contiguous, epochs never fall along them.';

create type state_columns as (
    groups text[],
    numbers integer[],
    epochs bigint[],
    types text[],
    ids text[],
    versions bigint[],
    bodies bytea[]
);
comment on type state_columns is 'States to be written, an element of each array for each.';

-- The shared fence is held until the transaction ends: whoever takes one of the shards waits for it, so an owner that
-- was seen under it stays owner until the write is committed.
--
-- Fence, check and write are one function because as three statements they would take three round trips.
--
-- Repeating is harmless, and needed: a connection that is lost during the commit leaves its outcome open, and the batch
-- is sent again. A row that holds exactly this version, epoch and bytes was written by the first one, and counts as
-- written.
create function commit_states(fence bigint, committer text, states state_columns) returns smallint[]
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    written bigint := 0;
    updated bigint;
begin
    if fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    if 1 = any (states.versions) then
        insert into entity_state (
            entity_type, entity_id, version, epoch, shard_group, shard_number, updated_at, data
        )
        select r.type, r.id, r.version, r.epoch, r.shard_group, r.number, now(), r.body
        from unnest(
            states.groups, states.numbers, states.epochs, states.types, states.ids, states.versions, states.bodies
        ) as r (shard_group, number, epoch, type, id, version, body)
        join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
        where r.version = 1 and s.epoch = r.epoch and s.owner_incarnation = committer
        on conflict do nothing;
        get diagnostics written = row_count;
    end if;

    if written < cardinality(states.versions) then
        update entity_state as x
        set version = r.version, epoch = r.epoch, shard_group = r.shard_group, shard_number = r.number,
            updated_at = now(), data = r.body
        from unnest(
            states.groups, states.numbers, states.epochs, states.types, states.ids, states.versions, states.bodies
        ) as r (shard_group, number, epoch, type, id, version, body)
        join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
        where x.entity_type = any (array[r.type]) and x.entity_id = any (array[r.id]) and x.version = r.version - 1
            and s.epoch = r.epoch and s.owner_incarnation = committer and x.epoch <= r.epoch;
        get diagnostics updated = row_count;
        written := written + updated;
    end if;

    if written = cardinality(states.versions) then
        return null;
    end if;

    return (
        select array_agg(
            case
                when x.version = r.version and x.epoch = r.epoch and x.data = r.body then 0
                when s.epoch = r.epoch and s.owner_incarnation = committer then 2
                else 1
            end::smallint
            order by r.place
        )
        from unnest(
            states.groups, states.numbers, states.epochs, states.types, states.ids, states.versions, states.bodies
        ) with ordinality as r (shard_group, number, epoch, type, id, version, body, place)
        left join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
        left join entity_state as x on x.entity_type = any (array[r.type]) and x.entity_id = any (array[r.id])
    );
end
$$;
comment on function commit_states is
    'Null: all were written. Else per row 0 written (now or before), 1 fenced, 2 version conflict.';
