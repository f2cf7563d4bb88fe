-- Shard locks as rows, for runners that have no session of the server to themselves: a pooler in transaction mode gives
-- each of their transactions another one.

-- A lock session is a row, and a lock is a row that names a lock session. A lock whose session has no row is free, so a
-- session ends, with all its locks, when its row is deleted. One that was ended can never be renewed. So whoever gets a
-- lock knows of the session that had it what advisory locks tell of theirs: it has not been heard of since.
--
-- A session that is silent counts as a runner that stands still, and is ended by whoever wants one of its locks, in the
-- transaction that gives the lock away. How long it was silent is told by the server's clock, which may be set: both
-- ways count, so that no session is kept by a step back. Nothing depends on it but when a session ends.
--
-- Nobody waits here for a transaction that somebody may have left open: rows that others have locked are passed over, and
-- locks that a living session has are not touched. Only the rows of locks that nobody ever tried are waited for, where
-- somebody else has begun to make them.

create table lock_session (
    token text primary key,
    incarnation text not null,
    renewed_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
create index lock_session_incarnation on lock_session (incarnation);
comment on table lock_session is 'Lock sessions of runners that hold their shards by leases; deleted when they end.';
comment on column lock_session.renewed_at is 'When its runner was heard of last.';

create table shard_lock (
    shard_group text not null,
    number integer not null,
    session text,
    primary key (shard_group, number)
) with (fillfactor = 50);
comment on table shard_lock is 'Which lock session holds each shard; none if null, or if there is no such session.';

create function is_silent(since timestamptz, silence interval) returns boolean
language sql volatile
return since not between clock_timestamp() - silence and clock_timestamp() + silence;
comment on function is_silent is 'Whether that is longer ago than `silence`, or further ahead: then the clock was set.';

create function keep_session(its_token text) returns boolean
language plpgsql as $$
begin
    update lock_session set renewed_at = clock_timestamp() where token = its_token;
    if not found then
        raise exception 'it was silent, or taken for dead, and another runner has ended it' using errcode = '57LSE';
    end if;
    return true;
end
$$;
comment on function keep_session is 'Notes that a lock session was heard of; fails if it has ended.';

-- What is held is found out again by a later statement than the one that locks the rows: its snapshot has every session
-- that had a row of these before, also one that began after the first statement.
create function lock_shards(its_token text, groups text[], numbers integer[], silence interval)
returns table (locked_group text, locked_number integer)
language plpgsql as $$
declare
    held_groups text[];
    held_numbers integer[];
begin
    perform keep_session(its_token);

    insert into shard_lock (shard_group, number)
    select distinct r.g, r.n from unnest(groups, numbers) as r (g, n)
    where not exists (select from shard_lock as l where l.shard_group = r.g and l.number = r.n)
    order by r.g, r.n
    on conflict do nothing;

    select array_agg(x.shard_group), array_agg(x.number) into held_groups, held_numbers
    from (
        select l.shard_group, l.number
        from shard_lock as l
        join unnest(groups, numbers) as r (g, n) on l.shard_group = r.g and l.number = r.n
        where not exists (
            select from lock_session as s where s.token = l.session and not is_silent(s.renewed_at, silence)
        )
        for update of l skip locked
    ) as x;

    delete from lock_session as s
    where s.token in (
        select h.token
        from lock_session as h
        where is_silent(h.renewed_at, silence) and h.token in (
            select l.session
            from shard_lock as l
            join unnest(held_groups, held_numbers) as r (g, n) on l.shard_group = r.g and l.number = r.n
        )
        for update skip locked
    );

    update shard_lock as l
    set session = its_token
    from unnest(held_groups, held_numbers) as r (g, n)
    where l.shard_group = r.g and l.number = r.n
        and not exists (select from lock_session as s where s.token = l.session);

    return query
    select l.shard_group, l.number
    from shard_lock as l
    join (select distinct r.g, r.n from unnest(groups, numbers) as r (g, n)) as r
        on l.shard_group = r.g and l.number = r.n
    where l.session = its_token;
end
$$;
comment on function lock_shards is
    'Gives a lock session those locks that are free, or whose sessions are silent, which ends them; returns what it has.';

create function unlock_shards(its_token text, groups text[], numbers integer[]) returns void
language plpgsql as $$
begin
    perform keep_session(its_token);
    update shard_lock as l
    set session = null
    from unnest(groups, numbers) as r (g, n)
    where l.shard_group = r.g and l.number = r.n and l.session = its_token;
end
$$;
comment on function unlock_shards is 'Frees locks that a lock session has.';

-- Advisory locks and rows do not see each other, so runners of both kinds must never be in one cluster. Which kind it has
-- stands among the cluster's values; nothing there means advisory locks. It may change while no runner is alive.
create function agree_on_locks(wanted text, silence interval) returns text
language plpgsql as $$
declare
    agreed text := coalesce((select v.value from cluster_value as v where v.name = 'locks'), '"session"');
begin
    if agreed = wanted or exists (select from runner as r where not is_silent(r.heartbeat_at, silence)) then
        return agreed;
    end if;
    -- Heartbeats that are under way come first, later ones see what is agreed then.
    lock table runner, lock_session in exclusive mode;
    if exists (select from runner as r where not is_silent(r.heartbeat_at, silence)) then
        return coalesce((select v.value from cluster_value as v where v.name = 'locks'), '"session"');
    end if;
    delete from lock_session;
    insert into cluster_value (name, value) values ('locks', wanted)
    on conflict (name) do update set value = excluded.value;
    return wanted;
end
$$;
comment on function agree_on_locks is 'How the runners of the cluster hold shards; as wanted, if none of them is alive.';

-- Whoever agreed may have stood still since, and an earlier release knows of no kinds. Neither gets a heartbeat through,
-- without which no runner tries a lock.
create function check_lock_kind() returns trigger
language plpgsql as $$
declare
    is_lease boolean := exists (select from cluster_value as v where v.name = 'locks' and v.value = '"lease"');
begin
    if is_lease <> exists (select from lock_session as s where s.incarnation = new.incarnation) then
        raise exception 'the runners of this cluster hold their shards by %, and this one does not: %',
            case when is_lease then 'leases' else 'lock sessions' end,
            case
                when is_lease then 'start it with --locks lease, and with a release that has it'
                else 'start it with --locks session'
            end
            using errcode = '57LSE';
    end if;
    return new;
end
$$;
comment on function check_lock_kind is 'Fails where a runner holds shards in another way than its cluster.';

select pin_functions('keep_session', 'lock_shards', 'unlock_shards', 'agree_on_locks', 'check_lock_kind');
create trigger check_lock_kind before insert on runner for each row execute function check_lock_kind();
select grant_to_members(
    'lock_session', 'shard_lock', 'is_silent', 'keep_session', 'lock_shards', 'unlock_shards', 'agree_on_locks',
    'check_lock_kind'
);
