-- Membership, shard ownership with its fence, and entity state.

create table cluster_value (
    name text primary key,
    value text not null
);
comment on table cluster_value is 'What every runner of the cluster must agree on.';

create table runner (
    incarnation text primary key,
    address text not null,
    weight double precision not null,
    groups text[] not null,
    entity_types text[] not null,
    draining boolean not null,
    version text not null,
    slot integer not null,
    backend_pid integer not null,
    started_at timestamptz not null default clock_timestamp(),
    heartbeat_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
comment on table runner is 'Registered runners; each writes its row again with every heartbeat of its lock session.';
comment on column runner.backend_pid is 'Server process of the lock session.';
comment on column runner.slot is 'Given once, at the first heartbeat: placement depends on it.';

-- One registration at a time, so that two runners that start together do not get the same slot.
create function runner_slot(new_incarnation text, new_address text, new_groups text[]) returns integer
language plpgsql as $$
declare
    found_slot integer;
begin
    select r.slot into found_slot from runner as r where r.incarnation = new_incarnation;
    if found then
        return found_slot;
    end if;

    perform pg_advisory_xact_lock(hashtextextended(current_schema() || '/slots', 0));

    select r.slot into found_slot from runner as r where r.address = new_address order by r.started_at desc limit 1;
    if found then
        return found_slot;
    end if;

    return (
        select min(free.slot)
        from generate_series(0, (select count(*)::integer from runner)) as free (slot)
        where not exists (select from runner as r where r.slot = free.slot and r.groups && new_groups)
    );
end
$$;
comment on function runner_slot is 'The slot of a registered runner, or the one that a new runner gets.';

create table shard (
    shard_group text not null,
    number integer not null,
    epoch bigint not null,
    owner_incarnation text,
    owner_address text,
    owner_fence bigint,
    since timestamptz not null default clock_timestamp(),
    primary key (shard_group, number)
) with (fillfactor = 50);
comment on table shard is 'Who owns each shard; the epoch grows by one whenever the shard is taken.';
comment on column shard.owner_fence is 'Advisory-lock key that the owner holds shared while it commits.';

create table machine_id (
    id smallint primary key check (id between 0 and 1023),
    holder text not null unique,
    expires_at timestamptz not null
);
comment on table machine_id is 'Leased machine ids of snowflakes.';

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

create view shards as
select
    s.shard_group || ':' || s.number as shard,
    s.epoch,
    s.owner_address as owner,
    s.owner_incarnation as incarnation,
    s.since,
    clock_timestamp() - r.heartbeat_at as owner_silent_for
from shard as s
left join runner as r on r.incarnation = s.owner_incarnation
order by s.shard_group, s.number;
comment on view shards is 'Shard owners, for people.';

-- Row locks come before fences, here and in release_shards, so that the two cannot deadlock; commits take no row lock of a
-- shard. Every statement of a volatile function sees a fresh snapshot under READ COMMITTED.
create function take_shards(
    groups text[], numbers integer[], new_incarnation text, new_address text, new_fence bigint
) returns table (taken_group text, taken_number integer, taken_epoch bigint)
language plpgsql as $$
declare
    former bigint;
begin
    insert into shard (shard_group, number, epoch)
    select r.g, r.n, 0 from unnest(groups, numbers) as r (g, n)
    order by r.g, r.n
    on conflict do nothing;

    perform 1
    from shard as s
    join unnest(groups, numbers) as r (g, n) on s.shard_group = r.g and s.number = r.n
    order by s.shard_group, s.number
    for update of s;

    for former in
        select distinct s.owner_fence
        from shard as s
        join unnest(groups, numbers) as r (g, n) on s.shard_group = r.g and s.number = r.n
        where s.owner_fence is not null
        order by s.owner_fence
    loop
        perform pg_advisory_xact_lock(former);
    end loop;

    return query
    update shard as s
    set epoch = s.epoch + 1,
        owner_incarnation = new_incarnation,
        owner_address = new_address,
        owner_fence = new_fence,
        since = clock_timestamp()
    from unnest(groups, numbers) as r (g, n)
    where s.shard_group = r.g and s.number = r.n
    returning s.shard_group, s.number, s.epoch;
end
$$;
comment on function take_shards is 'Waits out the commits of the former owners, then makes the caller owner at the next epochs.';

create function release_shards(
    groups text[], numbers integer[], epochs bigint[], old_incarnation text, old_fence bigint
) returns void
language plpgsql as $$
begin
    perform 1
    from shard as s
    join unnest(groups, numbers) as r (g, n) on s.shard_group = r.g and s.number = r.n
    where s.owner_incarnation = old_incarnation
    order by s.shard_group, s.number
    for update of s;

    if found and old_fence is not null then
        perform pg_advisory_xact_lock(old_fence);
    end if;

    update shard as s
    set owner_incarnation = null, owner_address = null, owner_fence = null, since = clock_timestamp()
    from unnest(groups, numbers, epochs) as r (g, n, e)
    where s.shard_group = r.g and s.number = r.n and s.epoch = r.e and s.owner_incarnation = old_incarnation;
end
$$;
comment on function release_shards is 'Waits out the owner''s own commits, then leaves the shards without an owner.';

-- The shared fence is held until the transaction ends: whoever takes one of the shards waits for it, so an owner that was
-- seen under it stays owner until the write is committed.
create function commit_states(
    fence bigint, committer text, groups text[], numbers integer[], epochs bigint[],
    types text[], ids text[], versions bigint[], bodies bytea[]
) returns smallint[]
language plpgsql as $$
declare
    written bigint := 0;
    updated bigint;
begin
    if fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    if 1 = any (versions) then
        insert into entity_state (
            entity_type, entity_id, version, epoch, shard_group, shard_number, updated_at, data
        )
        select r.t, r.i, r.v, r.e, r.g, r.n, now(), r.b
        from unnest(groups, numbers, epochs, types, ids, versions, bodies) as r (g, n, e, t, i, v, b)
        join shard as s on s.shard_group = r.g and s.number = r.n
        where r.v = 1 and s.epoch = r.e and s.owner_incarnation = committer
        on conflict do nothing;
        get diagnostics written = row_count;
    end if;

    if written < cardinality(versions) then
        update entity_state as x
        set version = r.v, epoch = r.e, shard_group = r.g, shard_number = r.n, updated_at = now(), data = r.b
        from unnest(groups, numbers, epochs, types, ids, versions, bodies) as r (g, n, e, t, i, v, b)
        join shard as s on s.shard_group = r.g and s.number = r.n
        where x.entity_type = r.t and x.entity_id = r.i and x.version = r.v - 1
            and s.epoch = r.e and s.owner_incarnation = committer and x.epoch <= r.e;
        get diagnostics updated = row_count;
        written := written + updated;
    end if;

    if written = cardinality(versions) then
        return null;
    end if;

    return (
        select array_agg(
            case
                when x.version = r.v and x.epoch = r.e and x.data = r.b then 0
                when s.epoch = r.e and s.owner_incarnation = committer then 2
                else 1
            end::smallint
            order by r.position
        )
        from unnest(groups, numbers, epochs, types, ids, versions, bodies)
            with ordinality as r (g, n, e, t, i, v, b, position)
        left join shard as s on s.shard_group = r.g and s.number = r.n
        left join entity_state as x on x.entity_type = r.t and x.entity_id = r.i
    );
end
$$;
comment on function commit_states is
    'Null: all were written. Else per row 0 written (now or before), 1 fenced, 2 version conflict.';

create function lease_machine_id(new_holder text, duration interval, guard bigint) returns smallint
language plpgsql as $$
declare
    leased smallint;
begin
    perform pg_advisory_xact_lock(guard);

    update machine_id set expires_at = clock_timestamp() + duration where holder = new_holder returning id into leased;
    if found then
        return leased;
    end if;

    select free.id into leased
    from (
        select candidate::smallint as id from generate_series(0, 1023) as candidate
        except
        select m.id from machine_id as m
    ) as free
    order by free.id
    limit 1;

    if leased is null then
        select m.id into leased from machine_id as m
        where m.expires_at <= clock_timestamp()
        order by m.expires_at
        limit 1;
    end if;

    if leased is not null then
        insert into machine_id as m (id, holder, expires_at)
        values (leased, new_holder, clock_timestamp() + duration)
        on conflict (id) do update set holder = excluded.holder, expires_at = excluded.expires_at;
    end if;
    return leased;
end
$$;
comment on function lease_machine_id is 'The holder''s id, renewed, else one that was never used, else the one that expired first; null: none.';
