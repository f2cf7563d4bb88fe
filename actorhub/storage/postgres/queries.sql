-- name: heartbeat
-- Write the caller's row and return every runner's, with the server process that ran this.
with mine as (
    insert into runner as r (
        incarnation, address, weight, groups, entity_types, draining, version, slot, backend_pid, heartbeat_at
    )
    values ($1, $2, $3, $4, $5, $6, $7, runner_slot($1, $2, $4), pg_backend_pid(), clock_timestamp())
    on conflict (incarnation) do update
    set address = excluded.address, weight = excluded.weight, groups = excluded.groups,
        entity_types = excluded.entity_types, draining = excluded.draining, version = excluded.version,
        backend_pid = excluded.backend_pid, heartbeat_at = excluded.heartbeat_at
    returning r.*
),
everyone as (
    select r.* from runner as r where r.incarnation <> $1
    union all
    select mine.* from mine
)
select
    e.incarnation, e.address, e.weight, e.groups, e.entity_types, e.draining, e.version, e.slot,
    greatest(extract(epoch from clock_timestamp() - e.heartbeat_at), 0)::double precision as silent_for,
    extract(epoch from e.started_at)::double precision as started_at,
    pg_backend_pid() as this_backend
from everyone as e;

-- name: runners
-- Every runner's row.
select
    r.incarnation, r.address, r.weight, r.groups, r.entity_types, r.draining, r.version, r.slot,
    greatest(extract(epoch from clock_timestamp() - r.heartbeat_at), 0)::double precision as silent_for,
    extract(epoch from r.started_at)::double precision as started_at
from runner as r;

-- name: remove_runner
-- Delete one runner's row.
delete from runner where incarnation = $1;

-- name: try_lock
-- Take those of the session locks that are free; the keys must not be held by this session already.
select k.key, pg_try_advisory_lock(k.key) as taken, pg_backend_pid() as this_backend from unnest($1::bigint[]) as k (key);

-- name: unlock
-- Free session locks; returns those that were not held.
select k.key from unnest($1::bigint[]) as k (key) where not pg_advisory_unlock(k.key);

-- name: session_probe
-- What this session is, as the server sees it; $1 is an advisory lock that the statement before this one took.
select
    pg_backend_pid() as pid,
    current_setting('application_name') as application_name,
    (select setting::integer from pg_settings where name = 'idle_session_timeout') as idle_milliseconds,
    exists (
        select from pg_locks
        where locktype = 'advisory' and granted and pid = pg_backend_pid() and objsubid = 1
            and database = (select oid from pg_database where datname = current_database())
            and (classid::bigint << 32) | objid::bigint = $1
    ) as lock_seen;

-- name: terminate_sessions
-- End the lock sessions with that application name and wait up to a second for each; returns how many there were.
select count(pg_terminate_backend(pid, 1000))
from pg_stat_activity
where application_name = $1 and datname = current_database() and pid <> pg_backend_pid();

-- name: end_fence_holders
-- End the sessions that hold shared fences of the present owners of these shards; returns how many there were.
select count(pg_terminate_backend(l.pid, 1000))
from pg_locks as l
where l.locktype = 'advisory' and l.granted and l.mode = 'ShareLock' and l.objsubid = 1 and l.pid <> pg_backend_pid()
    and l.database = (select oid from pg_database where datname = current_database())
    and (l.classid::bigint << 32) | l.objid::bigint in (
        select s.owner_fence
        from shard as s
        join unnest($1::text[], $2::integer[]) as r (g, n) on s.shard_group = r.g and s.number = r.n
    );

-- name: take
-- Become owner of shards: their new epochs.
select taken_group, taken_number, taken_epoch from take_shards($1, $2, $3, $4, $5);

-- name: release
-- Leave shards without an owner where the caller still owns them.
select release_shards($1, $2, $3, $4, $5);

-- name: shards
-- Every shard that ever had an owner.
select shard_group, number, epoch, owner_incarnation, owner_address from shard where epoch > 0 order by shard_group, number;

-- name: agree
-- Store cluster-wide values that are not there yet.
insert into cluster_value (name, value) select * from unnest($1::text[], $2::text[]) on conflict do nothing;

-- name: cluster_values
-- What the cluster agreed on.
select name, value from cluster_value;

-- name: load_states
-- Committed states of entities, by position in the request; those without state are left out. Once the data exceed $3
-- bytes, the rest comes without data, to be asked for again.
select
    found.position - 1 as position,
    found.version,
    case when found.bytes_so_far - octet_length(found.data) < $3 then found.data end as data
from (
    select
        r.position, x.version, x.data,
        sum(octet_length(x.data)) over (order by r.position) as bytes_so_far
    from unnest($1::text[], $2::text[]) with ordinality as r (t, i, position)
    join entity_state as x on x.entity_type = r.t and x.entity_id = r.i
) as found;

-- name: commit_states
-- Write a group of states: null when all were written, else a verdict for each.
select commit_states($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: lease_machine_id
-- Lease or renew a machine id; null when all are taken.
select lease_machine_id($1, $2, $3);

-- name: release_machine_id
-- Give a machine id back.
delete from machine_id where holder = $1;

-- name: server
-- What the server is, for the checks at start; $1 is the namespace.
select
    current_setting('server_version') as version,
    current_setting('server_version_num')::integer as version_number,
    current_setting('fsync')::boolean as fsync,
    current_setting('synchronous_commit') as synchronous_commit,
    current_setting('full_page_writes')::boolean as full_page_writes,
    current_setting('server_encoding') as encoding,
    pg_is_in_recovery() as standby,
    current_setting('search_path') = $1 and current_setting('default_transaction_isolation') = 'read committed'
        as settings_kept,
    current_setting('max_locks_per_transaction')::bigint
        * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint) as lock_slots;

-- name: migration_table
-- Whether the namespace has been migrated at all.
select to_regclass(quote_ident($1) || '.migration') is not null;

-- name: migrations
-- Which migrations were applied.
select number, name, checksum from migration order by number;

-- name: namespace_exists
-- Whether the schema is there.
select exists (select from pg_namespace where nspname = $1);
