-- Who owns each shard, and how a change of owner waits for the commits of the owner before.
--
-- The race. An owner begins a commit: it reads the shard's row and sees itself. Then it stalls, its lease runs out, and
-- another runner takes the shard, loads the state and goes on. Now the stalled commit writes. To check the epoch in the
-- same transaction is not enough under READ COMMITTED: the check may come before the takeover and the write after it.
--
-- What prevents it is the fence: an advisory lock of the owner's incarnation, whose key stands in the shard's row so
-- that whoever takes the shard knows what to wait for. Each commit takes the fence shared before it checks, and holds
-- it until its transaction ends. Whoever takes the shard takes the fence of the former owner exclusively. Either the
-- commit came first: then the takeover waits for its end, and the new owner reads what it wrote. Or the takeover came
-- first: then the commit's check, a later statement with a snapshot of its own, sees the new epoch, and nothing is
-- written.
--
-- All this needs READ COMMITTED, where each statement of a volatile function has a fresh snapshot. Under a stricter
-- level they share the first one, taken before the fence was, which proves nothing: connections pin the level, and
-- commit_runs, which also runs in transactions of handlers, checks it.
--
-- One fence per incarnation, not per shard: a batch would need a lock for each of its shards.
--
-- No deadlocks: takeovers and releases lock rows of shards first, in order, then fences, in order; commits lock a fence
-- and no row of a shard; deposits (hold_shards) lock rows of shards, in order, and no fence.

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

-- The caller has the advisory locks of the shards already. A former owner that is frozen inside a transaction holds its
-- fence: then this fails with the caller's lock_timeout, and the caller ends that session and tries again.
create function take_shards(
    groups text[], numbers integer[], new_incarnation text, new_address text, new_fence bigint
) returns table (taken_group text, taken_number integer, taken_epoch bigint)
language plpgsql as $$
declare
    former bigint;
begin
    insert into shard (shard_group, number, epoch)
    select r.shard_group, r.number, 0 from unnest(groups, numbers) as r (shard_group, number)
    order by r.shard_group, r.number
    on conflict do nothing;

    -- From here on nobody else takes, releases or deposits into one of these, so the fences read next are the last
    -- ones.
    perform 1
    from shard as s
    join unnest(groups, numbers) as r (shard_group, number) using (shard_group, number)
    order by s.shard_group, s.number
    for update of s;

    for former in
        select distinct s.owner_fence
        from shard as s
        join unnest(groups, numbers) as r (shard_group, number) using (shard_group, number)
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
    from unnest(groups, numbers) as r (shard_group, number)
    where s.shard_group = r.shard_group and s.number = r.number
    returning s.shard_group, s.number, s.epoch;
end
$$;
comment on function take_shards is
    'Waits out the commits of the former owners, then makes the caller owner at the next epochs.';

-- A release erases the fence's key from the row, so whoever takes the shard next has no fence to wait for. The release
-- itself therefore waits for the owner's own commits, some of which may still be under way.
create function release_shards(
    groups text[], numbers integer[], epochs bigint[], old_incarnation text, old_fence bigint
) returns void
language plpgsql as $$
begin
    perform 1
    from shard as s
    join unnest(groups, numbers) as r (shard_group, number) using (shard_group, number)
    where s.owner_incarnation = old_incarnation
    order by s.shard_group, s.number
    for update of s;

    if found and old_fence is not null then
        perform pg_advisory_xact_lock(old_fence);
    end if;

    update shard as s
    set owner_incarnation = null, owner_address = null, owner_fence = null, since = clock_timestamp()
    from unnest(groups, numbers, epochs) as r (shard_group, number, epoch)
    where s.shard_group = r.shard_group and s.number = r.number and s.epoch = r.epoch
        and s.owner_incarnation = old_incarnation;
end
$$;
comment on function release_shards is 'Waits out the owner''s own commits, then leaves the shards without an owner.';

create function hold_ownership(fence bigint, committer text, its_group text, its_number integer, its_epoch bigint)
returns boolean
language plpgsql as $$
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
comment on function hold_ownership is
    'Whether the committer owns the shard at that epoch; if so, it does until the transaction ends.';

-- Most batches are of one group and one epoch per shard. For those the owner is looked up once per shard instead of
-- once per row. Columns of numbers and names travel as one text each, a line per row: arrays of them cost more on
-- either side.
create type held_shards as (
    shard_group text,
    numbers text,
    epochs text
);
comment on type held_shards is 'Shards of one group in order of their numbers, each once, with the epoch of each.';

-- Plans once; 12_settings.sql says what that asks of a function.
create function owns_all(committer text, held held_shards) returns boolean
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    return string_to_array(held.epochs, E'\n')::bigint[] = (
        select array_agg(s.epoch order by s.number)
        from shard as s
        where s.shard_group = held.shard_group and s.number = any (string_to_array(held.numbers, E'\n')::integer[])
            and s.owner_incarnation = committer
    );
end
$$;
comment on function owns_all is 'Whether it owns all of these shards, at these epochs; null: nobody says which.';

-- For whoever acts without being the owner. Whoever takes one of the shards locks its row for update: it waits for this
-- transaction and then finds what was written, or this one waits for it and writes afterwards.
create function hold_shards(groups text[], numbers integer[]) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    insert into shard (shard_group, number, epoch)
    select distinct r.shard_group, r.number, 0 from unnest(groups, numbers) as r (shard_group, number)
    order by r.shard_group, r.number
    on conflict do nothing;

    perform 1
    from shard as s
    where (s.shard_group, s.number) in (
        select r.shard_group, r.number from unnest(groups, numbers) as r (shard_group, number)
    )
    order by s.shard_group, s.number
    for share of s;
end
$$;
comment on function hold_shards is 'Keeps the owners of shards from changing until the transaction ends.';
