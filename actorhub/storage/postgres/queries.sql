-- name: heartbeat
-- Write the caller's row and return every runner's, or if $8 is not null the $9 that follow it and those of $10, with
-- the server process that ran this, and the present era. $11 is the caller's lock session if that is a row: it is renewed
-- in the same step, or all this fails.
with mine as (
    insert into runner as r (
        incarnation, address, weight, groups, entity_types, draining, version, slot, backend_pid, heartbeat_at
    )
    select $1, $2, $3, $4, $5, $6, $7, runner_slot($1, $2, $4), pg_backend_pid(), clock_timestamp()
    where case when $11::text is null then true else keep_session($11) end
    on conflict (incarnation) do update
    set address = excluded.address, weight = excluded.weight, groups = excluded.groups,
        entity_types = excluded.entity_types, draining = excluded.draining, version = excluded.version,
        backend_pid = excluded.backend_pid, heartbeat_at = excluded.heartbeat_at
    returning r.*
),
everyone as (
    select r.* from runner as r where $8::text is null and r.incarnation <> $1
    union all
    (
        select r.* from runner as r
        where r.incarnation > $8 and r.incarnation <> $1 and r.incarnation <> all ($10::text[])
        order by r.incarnation
        limit $9
    )
    union all
    select r.* from runner as r where $8 is not null and r.incarnation <> $1 and r.incarnation = any ($10)
    union all
    select mine.* from mine
)
select
    e.incarnation, e.address, e.weight, e.groups, e.entity_types, e.draining, e.version, e.slot,
    greatest(extract(epoch from clock_timestamp() - e.heartbeat_at), 0)::double precision as silent_for,
    extract(epoch from e.started_at)::double precision as started_at,
    extract(epoch from clock_timestamp())::double precision as read_at,
    pg_backend_pid() as this_backend,
    (select x.token from era as x order by x.number desc limit 1) as era
from everyone as e;

-- name: runners
-- Every runner's row.
select
    r.incarnation, r.address, r.weight, r.groups, r.entity_types, r.draining, r.version, r.slot,
    greatest(extract(epoch from clock_timestamp() - r.heartbeat_at), 0)::double precision as silent_for,
    extract(epoch from r.started_at)::double precision as started_at,
    extract(epoch from clock_timestamp())::double precision as read_at
from runner as r;

-- name: remove_runner
-- Delete one runner's row.
delete from runner where incarnation = $1;

-- name: try_lock
-- Take those of the session locks that are free; the keys must not be held by this session already.
select k.key, pg_try_advisory_lock(k.key) as taken, pg_backend_pid() as this_backend
from unnest($1::bigint[]) as k (key);

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

-- name: open_lease_session
-- Begin the lock session $1, a row, of the incarnation $2. It ends the former ones of that incarnation, and whatever has
-- been silent for a minute and is wanted by nobody.
with former as (
    delete from lock_session as s
    where s.incarnation = $2 or is_silent(s.renewed_at, interval '1 minute')
)
insert into lock_session (token, incarnation) values ($1, $2);

-- name: close_lease_session
-- End one lock session that is a row, which frees its locks.
delete from lock_session where token = $1;

-- name: end_lease_sessions
-- End the lock sessions of an incarnation that are rows; returns how many there were.
with ended as (
    delete from lock_session where incarnation = $1 returning token
)
select count(*) from ended;

-- name: lock_shards
-- Give the lock session $1 those locks that are free or whose sessions have been silent for $4: what it has then.
select l.locked_group, l.locked_number from lock_shards($1, $2, $3, $4) as l;

-- name: unlock_shards
-- Free locks of the lock session $1.
select unlock_shards($1, $2, $3);

-- name: agree_on_locks
-- How the runners of the cluster hold shards; as wanted ($1), if none of them has been heard of for $2.
select agree_on_locks($1, $2);

-- name: end_fence_holders
-- End the sessions that hold shared fences of present owners of these shards: of $3, and of those at the epochs $4;
-- returns how many there were.
select count(pg_terminate_backend(l.pid, 1000))
from pg_locks as l
where l.locktype = 'advisory' and l.granted and l.mode = 'ShareLock' and l.objsubid = 1 and l.pid <> pg_backend_pid()
    and l.database = (select oid from pg_database where datname = current_database())
    and (l.classid::bigint << 32) | l.objid::bigint in (
        select s.owner_fence
        from shard as s
        join unnest($1::text[], $2::integer[], $4::bigint[]) as r (g, n, gone)
            on s.shard_group = r.g and s.number = r.n
        where s.owner_incarnation = $3 or s.epoch = r.gone
    );

-- name: take
-- Become owner of those shards that have no owner, had the caller, or are still at the epoch $6: their new epochs. The
-- rows are locked before the check, in the order of take_shards, so that what is checked holds until they are written. A
-- row that another session makes meanwhile is not seen here, and its shard is not taken.
with made as (
    insert into shard (shard_group, number, epoch)
    select r.g, r.n, 0 from unnest($1::text[], $2::integer[]) as r (g, n)
    order by r.g, r.n
    on conflict do nothing
    returning shard_group as g, number as n
),
locked as materialized (
    select s.shard_group as g, s.number as n, s.epoch, s.owner_incarnation
    from shard as s
    join unnest($1::text[], $2::integer[]) as r (g, n) on s.shard_group = r.g and s.number = r.n
    order by s.shard_group, s.number
    for update of s
),
free as (
    select array_agg(f.g) as groups, array_agg(f.n) as numbers
    from (
        select made.g, made.n from made
        union all
        select l.g, l.n
        from locked as l
        join unnest($1::text[], $2::integer[], $6::bigint[]) as r (g, n, gone) using (g, n)
        where l.owner_incarnation is null or l.owner_incarnation = $3 or l.epoch = r.gone
    ) as f
)
select t.taken_group, t.taken_number, t.taken_epoch
from free
cross join lateral take_shards(free.groups, free.numbers, $3, $4, $5) as t
where free.groups is not null;

-- name: release
-- Leave shards without an owner where the caller still owns them.
select release_shards($1, $2, $3, $4, $5);

-- name: shards
-- Every shard that ever had an owner.
select shard_group, number, epoch, owner_incarnation, owner_address
from shard
where epoch > 0
order by shard_group, number;

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
    case when found.bytes_so_far - octet_length(found.data) < $3 then found.data end as data,
    found.age,
    found.shard_group,
    found.shard_number
from (
    select
        r.position, x.version, x.data, x.shard_group, x.shard_number,
        greatest(extract(epoch from clock_timestamp() - x.updated_at), 0)::double precision as age,
        sum(octet_length(x.data)) over (order by r.position) as bytes_so_far
    from unnest($1::text[], $2::text[]) with ordinality as r (t, i, position)
    join entity_state as x on x.entity_type = r.t and x.entity_id = r.i
) as found;

-- name: move_entity
-- Move what is stored of an entity ($3, $4) from a shard ($5, $6), which $2 owns, to another ($7, $8), for the owner $1 of
-- one of them; how many messages that were, -1: the shards have other owners.
select move_entity($1, $2, $3, $4, $5, $6, $7, $8);

-- name: strays
-- Of the entities of these types ($1) with pending messages in shards of other groups than these ($2) the next $3, by
-- shard, type and id, after ($4 to $7).
select s.shard_group, s.number as shard_number, found.entity_type, found.entity_id
from (
    select
        x.shard_group collate "C" as shard_group, x.number,
        case when (x.shard_group, x.number) = ($4::text, $5::integer) then $6::text else '' end as after_type,
        case when (x.shard_group, x.number) = ($4::text, $5::integer) then $7::text else '' end as after_id
    from shard as x
    where x.shard_group <> all ($2::text[]) and (x.shard_group collate "C", x.number) >= ($4::text, $5::integer)
    order by 1, 2
) as s
cross join lateral (
    (
        select x.entity_type, x.entity_id
        from message as x
        where x.shard_number = s.number and x.shard_group = s.shard_group and x.deliver_at is null
            and x.entity_type = any ($1::text[]) and (x.entity_type, x.entity_id) > (s.after_type, s.after_id)
        group by x.entity_type, x.entity_id
        order by x.entity_type, x.entity_id
        limit $3
    )
    union
    (
        select y.entity_type, y.entity_id
        from message as y
        where y.shard_number = s.number and y.shard_group = s.shard_group and y.deliver_at is not null
            and y.entity_type = any ($1::text[]) and (y.entity_type, y.entity_id) > (s.after_type, s.after_id)
        group by y.entity_type, y.entity_id
        order by y.entity_type, y.entity_id
        limit $3
    )
) as found
order by s.shard_group, s.number, found.entity_type, found.entity_id
limit $3;

-- name: commit_states
-- Write a batch of states: null when all were written, else a verdict for each; and how far the log had come by then.
select commit_states($1, $2, $3), log_position();

-- name: store_messages
-- Store messages, for their owner (fence, incarnation) or, where that is null, for whoever owns their shards. A row for
-- each that is not plainly stored, and how far the log had come by then: on a row of its own where all are.
select place, verdict, found_id, found_due, clock, found_outcome, found_body, log_position() as position
from (select) as once
left join store_messages($1, $2, $3, $4) on true;

-- name: start_runs
-- Count runs before they start: null when all may, else a verdict for each.
select start_runs($1, $2, $3, $4);

-- name: uncount_runs
-- Take back the counts $7 of runs of messages $6 that a hand-over cut short, as long as the shard is the caller's, and
-- return those that somebody holds at the moment: waiting for several, whose locks others take in no order, could
-- deadlock.
with held as materialized (
    select hold_ownership($1, $2, $3, $4, $5) as owned
),
counted as materialized (
    select m.message_id
    from held
    cross join unnest($6::bigint[], $7::integer[]) as r (message_id, attempts)
    join message as m on m.message_id = any (array[r.message_id])
    where held.owned and m.attempts = r.attempts
),
free as materialized (
    select m.message_id
    from held
    cross join unnest($6::bigint[], $7::integer[]) as r (message_id, attempts)
    join message as m on m.message_id = any (array[r.message_id])
    where held.owned and m.attempts = r.attempts
    for update of m skip locked
),
uncounted as (
    update message as m
    set attempts = m.attempts - 1
    from free
    where m.message_id = any (array[free.message_id])
)
select counted.message_id from counted
where counted.message_id not in (select free.message_id from free);

-- name: uncount_run
-- Take back the count $7 of a run of message $6 that a hand-over cut short, as long as the shard is the caller's.
with held as materialized (
    select hold_ownership($1, $2, $3, $4, $5) as owned
)
update message as m
set attempts = m.attempts - 1
from held
where held.owned and m.message_id = $6 and m.attempts = $7;

-- name: commit_runs
-- Write what runs leave behind: null when all was written and every next run counted, else a verdict for each; and how
-- far the log had come by then.
select commit_runs($1, $2, $3, $4, $5, $6), log_position();

-- name: fail_runs
-- Record failed runs: for each when the next one is due, or why it was not recorded. The keys of the dead letters $4, at
-- places $5, are free from now on: with the message's id they are nobody else's, and kept for a retry.
with recorded as materialized (
    select fail_runs($1, $2, $3) as dues
),
freed as (
    update message_key as k
    set key_hash = k.key_hash || int8send(k.message_id)
    from recorded, unnest($4::bigint[], $5::integer[]) as r (message_id, place)
    join message as m on m.message_id = any (array[r.message_id])
    where recorded.dues[r.place] = 0 and k.key_hash = any (array[m.key_hash]) and k.message_id = m.message_id
)
select recorded.dues from recorded;

-- name: load_backlog
-- Of each shard ($1, $2) the next $5 entities after type and id ($3, $4) that have messages due at once, and of each of
-- those the first $6 messages. The step counts a shard's entities; one more than asked for comes without a message if
-- there is one. Once the bodies exceed $7 bytes, further entities come without bodies, to be asked for again. A message
-- is odd if its history is not one that a failed run can be added to.
select
    found.place, found.step, found.message_id, found.entity_type, found.entity_id, found.handler, found.headers,
    found.key, null::double precision as due, found.attempts, found.odd,
    case
        when coalesce(
            found.bytes_so_far - sum(octet_length(found.body)) over (partition by found.place, found.step), 0
        ) < $7 then found.body
    end as body
from (
    select
        r.place, e.step, m.message_id, m.entity_type, m.entity_id, m.handler, m.headers, m.key, m.attempts, m.body,
        m.history is not null and coalesce(m.history -> -1 ->> 'attempt', '') !~ '^[0-9]{1,9}$' as odd,
        sum(octet_length(m.body)) over (order by r.place, e.step) as bytes_so_far
    from unnest($1::text[], $2::integer[], $3::text[], $4::text[]) with ordinality as r (g, n, t, i, place)
    cross join lateral (
        with recursive entity as (
            (
                select x.entity_type, x.entity_id, 1 as step
                from message as x
                where x.shard_group = r.g and x.shard_number = r.n and x.deliver_at is null
                    and (x.entity_type, x.entity_id) > (r.t, r.i)
                order by x.entity_type, x.entity_id
                limit 1
            )
            union all
            select y.entity_type, y.entity_id, e.step + 1
            from entity as e
            cross join lateral (
                select x.entity_type, x.entity_id
                from message as x
                where x.shard_group = r.g and x.shard_number = r.n and x.deliver_at is null
                    and (x.entity_type, x.entity_id) > (e.entity_type, e.entity_id)
                order by x.entity_type, x.entity_id
                limit 1
            ) as y
            where e.step <= $5::integer
        )
        select entity.entity_type, entity.entity_id, entity.step from entity
    ) as e
    left join lateral (
        select x.*
        from message as x
        where e.step <= $5::integer and x.shard_group = r.g and x.shard_number = r.n and x.deliver_at is null
            and x.entity_type = e.entity_type and x.entity_id >= e.entity_id and x.entity_id <= e.entity_id
        order by x.entity_id, x.message_id
        limit $6
    ) as m on true
) as found
order by found.place, found.step, found.message_id;

-- name: load_entities
-- Of each shard, type and id ($1 to $4) the first $5 messages that are due at once.
select
    r.place, m.message_id, m.entity_type, m.entity_id, m.handler, m.headers, m.key, null::double precision as due,
    m.attempts, m.body, m.history is not null and coalesce(m.history -> -1 ->> 'attempt', '') !~ '^[0-9]{1,9}$' as odd
from unnest($1::text[], $2::integer[], $3::text[], $4::text[]) with ordinality as r (g, n, t, i, place)
cross join lateral (
    select x.*
    from message as x
    where x.shard_group = r.g and x.shard_number = r.n and x.deliver_at is null
        and x.entity_type = r.t and x.entity_id >= r.i and x.entity_id <= r.i
    order by x.entity_id, x.message_id
    limit $5
) as m
order by r.place, m.message_id;

-- name: load_scheduled
-- The first $4 messages of shards ($1, $2), by due time, that are due before $3 (Unix time), and the clock: on a row of
-- its own where there are none.
select
    extract(epoch from clock_timestamp())::double precision as clock,
    m.message_id, m.shard_group, m.shard_number, m.entity_type, m.entity_id, m.handler, m.headers, m.key,
    extract(epoch from m.deliver_at)::double precision as due, m.attempts, m.body,
    m.history is not null and coalesce(m.history -> -1 ->> 'attempt', '') !~ '^[0-9]{1,9}$' as odd
from (select) as once
left join lateral (
    select y.*
    from (
        select x.message_id
        from unnest($1::text[], $2::integer[]) as r (g, n)
        cross join lateral (
            select z.message_id, z.deliver_at
            from message as z
            where z.shard_group = r.g and z.shard_number = r.n and z.deliver_at is not null
                and z.deliver_at < to_timestamp($3)
            order by z.deliver_at
            limit $4
        ) as x
        order by x.deliver_at, x.message_id
        limit $4
    ) as first
    join message as y on y.message_id = any (array[first.message_id])
) as m on true
order by m.deliver_at, m.message_id;

-- name: drop_histories
-- Drop histories that no failed run could be added to.
update message set history = null where message_id = any($1::bigint[]);

-- name: promote_due
-- Make due messages wait in line with those that are due at once.
update message set deliver_at = null where message_id = any($1::bigint[]) and deliver_at <= clock_timestamp();

-- name: cancel
-- Settle a message as cancelled, and free its key; returns what was found. The key of a message that was cancelled before
-- is freed, too: a repeated request may have taken it again. A key that a run gave stays: the run learns of the
-- cancellation, and if it is repeated must learn it again. With the message's id the key is nobody else's, and leads to
-- the cancelled message for `cancelled_since`.
with done as materialized (
    select cancel_message($1, $2, $3, $4, $5, $6, $7) as result
),
known as (
    select m.key_hash, m.key, false as is_cancelled from message as m where m.message_id = $3
    union all
    select d.key_hash, d.key, false from dead_letter as d where d.message_id = $3
    union all
    select q.key_hash, q.key, true from reply as q where q.message_id = $3 and q.outcome = 2
),
freed as (
    select k.key_hash, k.key_hash || int8send($3) as aside,
        exists (select from message_key as f where f.key_hash = any (array[k.key_hash || int8send($3)])) as is_aside
    from done, known
    join message_key as k on k.key_hash = any (array[known.key_hash])
    where k.message_id = $3 and (done.result = 0 or (done.result = 1 and known.is_cancelled))
        and known.key not like E'\x1f%'
),
put_aside as (
    update message_key as k set key_hash = f.aside from freed as f
    where not f.is_aside and k.key_hash = any (array[f.key_hash])
),
dropped as (
    delete from message_key as k using freed as f where f.is_aside and k.key_hash = any (array[f.key_hash])
)
select done.result from done;

-- name: retry
-- Make dead letters pending again, and pending messages due at once. A dead letter gets the key back that was freed when
-- it became one; if the key names another message by now, it stays as it is. A repeated request for the dead letter may
-- have taken the key already.
with taken as (
    select d.message_id
    from dead_letter as d
    join message_key as k on k.key_hash = any (array[d.key_hash])
    where d.message_id = any($1) and k.message_id <> d.message_id
),
put_aside as (
    select d.message_id, d.key_hash, d.key_hash || int8send(d.message_id) as aside,
        exists (select from message_key as p where p.key_hash = any (array[d.key_hash])) as is_taken
    from dead_letter as d
    where d.message_id = any($1) and d.message_id not in (select t.message_id from taken as t)
),
dropped as (
    delete from message_key as k using put_aside as a where a.is_taken and k.key_hash = any (array[a.aside])
),
taken_back as (
    update message_key as k
    set key_hash = a.key_hash
    from put_aside as a
    where not a.is_taken and k.key_hash = any (array[a.aside])
)
select
    m.message_id, m.shard_group, m.shard_number, m.entity_type, m.entity_id, m.handler, m.headers, m.key,
    null::double precision as due, m.attempts, m.body
from retry_messages(array(
    select r.message_id from unnest($1::bigint[]) as r (message_id)
    where r.message_id not in (select t.message_id from taken as t)
)) as m
order by m.message_id;

-- name: find
-- All that is known of a message.
select
    m.message_id, m.shard_group || ':' || m.shard_number as shard, m.entity_type, m.entity_id, m.handler,
    case when m.deliver_at > clock_timestamp() then 'scheduled' else 'pending' end as state,
    m.key, m.attempts, extract(epoch from m.created_at)::double precision as created_at,
    extract(epoch from m.deliver_at)::double precision as deliver_at,
    null::double precision as finished_at, null::double precision as expires_at,
    m.body, m.headers, null::smallint as outcome, null::bytea as answer, m.history::text as history
from message as m
where m.message_id = $1
union all
select
    q.message_id, q.shard_group || ':' || q.shard_number, q.entity_type, q.entity_id, q.handler,
    case q.outcome when 0 then 'done' when 1 then 'failed' else 'cancelled' end,
    q.key, q.attempts, extract(epoch from q.created_at)::double precision, null,
    extract(epoch from q.finished_at)::double precision, extract(epoch from q.expires_at)::double precision,
    null, null, q.outcome, q.body, null
from reply as q
where q.message_id = $1
union all
select
    d.message_id, d.shard_group || ':' || d.shard_number, d.entity_type, d.entity_id, d.handler, 'dead',
    d.key, d.attempts, extract(epoch from d.created_at)::double precision,
    extract(epoch from d.deliver_at)::double precision, extract(epoch from d.died_at)::double precision, null,
    d.body, d.headers, 3::smallint, d.error, d.history::text
from dead_letter as d
where d.message_id = $1;

-- name: find_key
-- The message that has a key, with the hash of its arguments, and these where they are kept. The key of a dead letter that
-- was freed is taken again by a request for that message that is repeated: it is freed here.
with stale as (
    delete from message_key as k
    using dead_letter as d, message_key as f
    where k.key_hash = $1 and d.message_id = any (array[k.message_id])
        and f.key_hash = any (array[k.key_hash || int8send(k.message_id)])
    returning k.message_id
)
select k.message_id, k.payload_hash, coalesce(m.body, d.body) as body
from message_key as k
left join message as m on m.message_id = any (array[k.message_id])
left join dead_letter as d on d.message_id = any (array[k.message_id])
where k.key_hash = $1 and not exists (select from stale);

-- name: cancelled_since
-- The latest message that had the key $1 and was cancelled after $2 (Unix time).
select q.message_id
from message_key as k
join reply as q on q.message_id = any (array[k.message_id])
where k.key_hash > $1 and k.key_hash <= $1 || '\xffffffffffffffff'::bytea
    and q.outcome = 2 and q.finished_at > to_timestamp($2)
order by q.finished_at desc
limit 1;

-- name: list_messages
-- Messages by state ($1), entity ($2, $3), handler ($4), shard ($5), key ($6) and age ($7), after an id ($8).
select
    v.message_id, v.shard, v.entity_type, v.entity_id, v.handler, v.state, v.key, v.attempts,
    extract(epoch from v.created_at)::double precision as created_at,
    extract(epoch from v.deliver_at)::double precision as deliver_at,
    extract(epoch from v.finished_at)::double precision as finished_at,
    extract(epoch from v.expires_at)::double precision as expires_at
from messages as v
where v.message_id > $8
    and ($1::text[] is null or v.state = any($1))
    and ($2::text is null or v.entity_type = $2)
    and ($3::text is null or v.entity_id = $3)
    and ($4::text is null or v.handler = $4)
    and ($5::text is null or v.shard = $5)
    and ($6::text is null or v.key = $6)
    and ($7::double precision is null or v.created_at < now() - make_interval(secs => $7))
order by v.message_id
limit $9;

-- name: purge
-- Delete dead letters by entity ($1, $2), handler ($3), shard ($4), key ($5) and age ($6), after an id ($7): at most
-- $8, and their keys; returns how many, and the last id.
with gone as (
    delete from dead_letter
    where message_id in (
        select d.message_id
        from dead_letter as d
        where d.message_id > $7
            and ($1::text is null or d.entity_type = $1)
            and ($2::text is null or d.entity_id = $2)
            and ($3::text is null or d.handler = $3)
            and ($4::text is null or d.shard_group || ':' || d.shard_number = $4)
            and ($5::text is null or d.key = $5)
            and ($6::double precision is null or d.created_at < now() - make_interval(secs => $6))
        order by d.message_id
        limit $8
        for update
    )
    returning message_id, key_hash
),
freed as (
    delete from message_key as k
    using gone
    where k.message_id = gone.message_id
        and k.key_hash in (gone.key_hash, gone.key_hash || int8send(gone.message_id))
)
select count(*) as purged, max(gone.message_id) as last_id from gone;

-- name: remove_expired
-- Forget the first $1 settled messages whose retention is over, and their keys; returns how many there were. Those that
-- a run sent which may be repeated are kept for another hour: then the run must find them. Such a key has control
-- characters; between the first two is the message that runs, or there are type, id and generation of a singleton.
with expired as (
    select q.message_id, split_part(q.key, E'\x1f', 2) as sender, split_part(q.key, E'\x1f', 3) as its_id,
        split_part(q.key, E'\x1f', 4) as generation, q.key like E'\x1f%' as is_sent_by_a_run
    from reply as q
    where q.expires_at <= statement_timestamp()
    order by q.expires_at
    limit $1
    for update skip locked
),
wanted as (
    select x.message_id
    from expired as x
    where x.is_sent_by_a_run and case
        when x.generation = '' then
            exists (select from message as m where m.message_id = x.sender::bigint)
            or exists (select from dead_letter as d where d.message_id = x.sender::bigint)
        else exists (
            select from singleton as s
            join checkpoint as c on c.message_id = 0 and c.entity_type = s.singleton and c.entity_id = s.entity_id
            where s.singleton = x.sender and s.entity_id = x.its_id and s.generation = x.generation::bigint
        )
    end
),
kept as (
    update reply as q
    set expires_at = clock_timestamp() + interval '1 hour'
    from wanted
    where q.message_id = any (array[wanted.message_id])
),
gone as (
    delete from reply as q
    using expired as x
    where q.message_id = any (array[x.message_id])
        and not exists (select from wanted as w where w.message_id = x.message_id)
    returning q.message_id, q.key_hash
),
freed as (
    delete from message_key as k using gone
    where k.key_hash = any (array[gone.key_hash, gone.key_hash || int8send(gone.message_id)])
        and k.message_id = gone.message_id
)
select count(*) from expired;

-- name: free_keys
-- Let the keys of messages that ended with an error, or cancelled, be used again. Dead letters keep theirs for a retry, as
-- those of fail_runs do.
with put_aside as (
    update message_key as k
    set key_hash = k.key_hash || int8send(k.message_id)
    from dead_letter as d
    where k.key_hash = any ($1::bytea[]) and d.message_id = any (array[k.message_id])
        and not exists (select from message_key as f where f.key_hash = k.key_hash || int8send(k.message_id))
)
delete from message_key as k
where k.key_hash = any ($1::bytea[])
    and not exists (select from message as m where m.message_id = k.message_id)
    and not exists (select from reply as q where q.message_id = k.message_id and q.outcome = 0)
    and (
        not exists (select from dead_letter as d where d.message_id = k.message_id)
        or exists (select from message_key as f where f.key_hash = k.key_hash || int8send(k.message_id))
    );

-- name: lease_machine_id
-- Lease or renew a machine id; null when all are taken.
select lease_machine_id($1, $2, $3);

-- name: release_machine_id
-- Give a machine id back.
delete from machine_id where holder = $1;

-- name: server
-- What the server is, for the checks at start.
select
    current_setting('server_version') as version,
    current_setting('server_version_num')::integer as version_number,
    current_setting('fsync')::boolean as fsync,
    current_setting('synchronous_commit') as synchronous_commit,
    current_setting('full_page_writes')::boolean as full_page_writes,
    current_setting('server_encoding') as encoding,
    pg_is_in_recovery() as standby,
    current_setting('max_locks_per_transaction')::bigint
        * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint)
        as lock_slots;

-- name: column_types
-- Nothing, of every type of the schema that batches are sent in: preparing this one makes all of them known at once.
select
    $1::state_columns, $2::message_columns, $3::start_columns, $4::run_columns, $5::failure_columns, $6::text[],
    $7::bytea[];

-- name: missing_grants
-- What the user may not do in a schema ($1) that was migrated, as far as it must: a row for each statement that grants it.
with mine as (
    select n.oid, quote_ident(n.nspname) as schema_name
    from pg_namespace as n
    where n.nspname = $1
        and exists (select from pg_class as c where c.relnamespace = n.oid and c.relname = 'migration')
),
tables as (
    select
        mine.schema_name, c.relname,
        (
            select string_agg(p.privilege, ', ' order by p.step)
            from unnest(array['select', 'insert', 'update', 'delete']) with ordinality as p (privilege, step)
            where not has_table_privilege(c.oid, p.privilege)
                and (c.relname not in ('migration', 'addition') or p.privilege = 'select')
        ) as lacking
    from mine
    join pg_class as c on c.relnamespace = mine.oid and c.relkind in ('r', 'p')
)
select quote_ident(current_user) as role, lacked.privileges, lacked.objects
from (
    select 1 as step, 'usage' as privileges, 'schema ' || schema_name as objects
    from mine
    where not has_schema_privilege(oid, 'usage')
    union all
    select
        2, lacking,
        case
            when count(*) * 2 > (select count(*) from tables) then 'all tables in schema ' || min(schema_name)
            else string_agg(schema_name || '.' || quote_ident(relname), ', ' order by relname)
        end
    from tables
    where lacking is not null and (relname not in ('migration', 'addition') or not exists (
        select from tables as other where other.relname = 'shard' and other.lacking like 'select,%'
    ))
    group by lacking
    union all
    select 3, 'execute', 'all functions in schema ' || min(mine.schema_name)
    from mine
    join pg_proc as f on f.pronamespace = mine.oid and not has_function_privilege(f.oid, 'execute')
    having count(*) > 0
) as lacked
order by lacked.step, lacked.objects;

-- name: is_whole
-- Whether a migration has made the tables of a schema, keys included.
select exists (
    select from pg_constraint as c
    join pg_class as t on t.oid = c.conrelid
    join pg_namespace as n on n.oid = t.relnamespace
    where n.nspname = $1 and t.relname = 'shard' and c.contype = 'p'
);

-- name: enter_era
-- The present era; with $1, a copy is adopted. When the server started is in microseconds.
select
    (found.present).token, (found.present).cluster, (found.present).begun_at, found.is_copy, found.is_adopted,
    (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint as server_started_at,
    'era'::regclass::oid as table_oid
from enter_era($1) as found;

-- name: present_era
-- The token of the present era.
select e.token from era as e order by e.number desc limit 1;

-- name: parted_at
-- How far the log had come where the database's past and that of a process that was in these eras part.
select case when common.number is null then 0 else coalesce(following.recovered_to, 0) end
from (select max(e.number) as number from era as e where e.token = any ($1::text[])) as common
left join lateral (
    select e.recovered_to from era as e where e.number > common.number order by e.number limit 1
) as following on true;

-- name: pending_work
-- What a copy would do that its original may be doing as well.
select
    (select count(*) from (select from message limit 100000) as m) as messages,
    (select count(*) from cron_schedule) as schedules;

-- name: sees_lock
-- Whether a session of this database holds that advisory lock.
select exists (
    select from pg_locks
    where locktype = 'advisory' and granted and objsubid = 1
        and database = (select oid from pg_database where datname = current_database())
        and (classid::bigint << 32) | objid::bigint = $1
);

-- name: settings_kept
-- Whether the session has the settings that it was given; $1 is the namespace.
select
    current_setting('search_path') = format('"%s"', $1::text)
    and current_setting('default_transaction_isolation') = 'read committed';

-- name: step_table
-- Whether the namespace ($1) has the table of that kind of steps ($2).
select to_regclass(quote_ident($1) || '.' || quote_ident($2)) is not null;

-- name: migrations
-- Which migrations were applied.
select number, name, checksum from migration order by number;

-- name: additions
-- Which additions were applied.
select number, name, checksum from addition order by number;

-- name: namespace_exists
-- Whether the schema is there.
select exists (select from pg_namespace where nspname = $1);

-- name: load_checkpoints
-- The checkpoints of a message ($3; 0: of a singleton's run) of an entity ($1, $2), and how often they were closed
-- before: on a row of its own where there are none.
select
    coalesce(
        (select s.generation from singleton as s where $3::bigint = 0 and s.singleton = $1 and s.entity_id = $2), 0
    ) as generation,
    c.name,
    c.data
from (select) as once
left join checkpoint as c on c.message_id = $3 and c.entity_type = $1 and c.entity_id = $2;

-- name: write_checkpoints
-- Write the checkpoints of a run that was written in this transaction; returns whether its next run was counted.
select write_checkpoints($1, $2, $3, $4, $5, $6, $7, $8);

-- name: complete
-- Store the outcome of a deferred value; returns whether what is stored is this one.
with w as (
    insert into completion as c (token_hash, entity_type, entity_id, message_id, kind, data)
    values ($1, $2, $3, $4, $5, $6)
    on conflict (token_hash) do update set kind = excluded.kind where c.kind = excluded.kind and c.data = excluded.data
    returning c.token_hash
)
select exists (select from w);

-- name: completions
-- The outcomes of deferred values.
select token_hash, entity_type, entity_id, message_id, kind, data from completion where token_hash = any($1::bytea[]);

-- name: remove_orphans
-- Forget at most $2 checkpoints and outcomes, older than $1 seconds, of messages that are gone; returns how many.
select remove_orphans($1, $2);

-- name: lead_singleton
-- Write who leads a singleton; returns what is stored, no row where the shard was lost.
select
    s.*, extract(epoch from s.since)::double precision as since_time,
    extract(epoch from s.heartbeat_at)::double precision as heartbeat_time,
    extract(epoch from clock_timestamp())::double precision as clock
from lead_singleton($1, $2, $3, $4, $5, $6, $7, $8, $9) as s;

-- name: record_singleton
-- Write what a leader knows of its singleton; returns whether the shard is still its own, and the clock.
select
    record_singleton($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9, $10) as owned,
    extract(epoch from clock_timestamp())::double precision as clock;

-- name: list_singletons
-- Every singleton, and the clock: on a row of its own where there are none.
select
    s.*, extract(epoch from s.since)::double precision as since_time,
    extract(epoch from s.heartbeat_at)::double precision as heartbeat_time,
    extract(epoch from clock_timestamp())::double precision as clock
from (select) as once
left join singleton as s on true
order by s.singleton;

-- name: list_schedules
-- The schedules of one singleton, or of all, and the clock: on a row of its own where there are none.
select c.*, extract(epoch from clock_timestamp())::double precision as clock
from (select) as once
left join cron_schedule as c on $1::text is null or c.singleton = $1
order by c.singleton, c.name;

-- name: keep_schedule
-- Write a schedule unless it was edited meanwhile; returns what is stored, no row where the shard was lost.
select c.* from keep_schedule($1, $2, $3, $4, $5, $6::jsonb) as c;

-- name: remove_schedules
-- Delete schedules of a singleton; returns whether the shard is still its leader's.
select remove_schedules($1, $2, $3, $4, $5, $6, $7);

-- name: edit_schedule
-- Change a schedule for an operator: paused ($3), expression ($4), time zone ($5), or back to what the code says ($6).
update cron_schedule as c
set paused = coalesce($3, c.paused),
    expression = coalesce($4, case when $6 then split_part(c.declared, '|', 1) else c.expression end),
    timezone = coalesce($5, case when $6 then split_part(c.declared, '|', 2) else c.timezone end),
    edited = coalesce($4, $5) is not null or (c.edited and not $6),
    revision = c.revision + 1,
    planned_from = null,
    next_at = null
where c.singleton = $1 and c.name = $2
returning c.*;

-- name: remove_abandoned
-- Delete singletons that nobody led, and whose state nobody wrote, for longer than their state is kept; returns how
-- many.
select remove_abandoned();

-- name: keep_secret
-- Store the cluster's secret if there is none.
insert into cluster_secret (secret) values ($1) on conflict do nothing;

-- name: secret
-- The cluster's secret.
select secret from cluster_secret;

-- name: get_values
-- Values by key; keys without one are left out. Once the data exceed $2 bytes, the rest comes without data, to be asked
-- for again.
select
    found.position - 1 as position,
    case when found.bytes_so_far - octet_length(found.data) < $2 then found.data end as data,
    found.ttl
from (
    select
        r.position, v.data,
        case when v.expires_at is not null
            then greatest(extract(epoch from v.expires_at - clock_timestamp()), 0)::double precision
        end as ttl,
        sum(octet_length(v.data)) over (order by r.position) as bytes_so_far
    from unnest($1::text[]) with ordinality as r (key, position)
    join key_value as v on v.key = r.key
    where v.expires_at is null or v.expires_at > clock_timestamp()
) as found;

-- name: put_value
-- Write a value, whatever was there; it lives for $3 seconds; null: until it is deleted.
insert into key_value as v (key, data, expires_at)
values ($1, $2, clock_timestamp() + make_interval(secs => $3))
on conflict (key) do update
set data = excluded.data, expires_at = excluded.expires_at, updated_at = excluded.updated_at;

-- name: make_value
-- Write a value if there is none; returns a row if there was none.
insert into key_value as v (key, data, expires_at)
values ($1, $2, clock_timestamp() + make_interval(secs => $3))
on conflict (key) do update
set data = excluded.data, expires_at = excluded.expires_at, updated_at = excluded.updated_at
where v.expires_at <= clock_timestamp()
returning true;

-- name: replace_value
-- Write $3 if the value is $2; returns a row if it was.
update key_value as v set data = $3, updated_at = clock_timestamp()
where v.key = $1 and v.data = $2 and (v.expires_at is null or v.expires_at > clock_timestamp())
returning true;

-- name: remove_value
-- Delete the value if it is $2; returns a row if it was.
delete from key_value as v
where v.key = $1 and v.data = $2 and (v.expires_at is null or v.expires_at > clock_timestamp())
returning true;

-- name: delete_value
-- Delete a value; returns a row with whether its time was not over, if there was one.
delete from key_value as v where v.key = $1 returning v.expires_at is null or v.expires_at > clock_timestamp();

-- name: count_values
-- How many keys match the pattern $1, up to $2.
select count(*)
from (
    select from key_value as v
    where v.key like $1 and (v.expires_at is null or v.expires_at > clock_timestamp())
    limit $2
) as found;

-- name: clear_values
-- Delete the first $3 keys that match the pattern $1 and come after $2; returns how many values that were, and the last
-- key unless there are no more.
with gone as (
    delete from key_value
    where key = any(array(
        select v.key from key_value as v where v.key like $1 and v.key > $2 order by v.key limit $3 for update
    ))
    returning key, expires_at
)
select
    count(*) filter (where gone.expires_at is null or gone.expires_at > clock_timestamp()) as removed,
    case when count(*) = $3 then max(gone.key) end as last
from gone;

-- name: remove_expired_values
-- Delete at most $1 values whose time is over; returns how many.
with gone as (
    delete from key_value
    where key = any(array(
        select v.key
        from key_value as v
        where v.expires_at <= statement_timestamp()
        order by v.expires_at
        limit $1
        for update skip locked
    ))
    returning key
)
select count(*) from gone;
