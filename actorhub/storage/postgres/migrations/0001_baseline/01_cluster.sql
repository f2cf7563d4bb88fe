-- What the cluster agrees on, its registered runners, and the machine ids of its processes.

create table cluster_value (
    name text primary key,
    value text not null
);
comment on table cluster_value is 'What every runner of the cluster must agree on.';

create table cluster_secret (
    only_row boolean primary key default true check (only_row),
    secret bytea not null
);
comment on table cluster_secret is 'What the cluster signs tokens with.';

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

-- Two runners that start at the same moment would both find the same slot free and register with it. The lock lets one
-- of them choose at a time; the other one searches in a later statement, with a snapshot that has the first one's row.
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

    -- A runner that restarts gets the slot of its address, and with it the shards that it had.
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

create table machine_id (
    id smallint primary key check (id between 0 and 1023),
    holder text not null unique,
    expires_at timestamptz not null
);
comment on table machine_id is 'Leased machine ids of snowflakes.';

-- The guard keeps two processes from leasing the same free id. Ids that were never used come before expired ones, and
-- of those the one that expired first: a holder that was cut off may not know yet that its lease ran out.
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
comment on function lease_machine_id is
    'The holder''s id, renewed, else one that was never used, else the one that expired first; null: none is free.';
