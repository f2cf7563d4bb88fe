-- What lanes and people do with durable messages, one round trip each.

-- The functions plan once, for index look-ups from a few rows: planning costs more than running, and what a table
-- holds when a plan is made says nothing of later. An exists() inside of an or might read a whole table into a hash. For
-- the comparison = any (array[x]) nothing but a look-up per row is possible: after = x, a table that was empty at the
-- last analyze would be read as a whole through its index, with all that was deleted since.

-- Simple enough for the planner to inline it.
create function due_time(due double precision, delay double precision) returns timestamptz
language sql volatile as $$
    select case
        when to_timestamp(due) > clock_timestamp() then to_timestamp(due)
        when delay > 0 then clock_timestamp() + make_interval(secs => delay)
    end
$$;
comment on function due_time is 'When a message is due; null: at once.';

-- Lanes send columns of numbers and names as one text each, a line per row: arrays of them cost more on either side.
create function owns_all(committer text, its_group text, numbers text, epochs text) returns boolean
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    return string_to_array(epochs, E'\n')::bigint[] = (
        select array_agg(s.epoch order by s.number)
        from shard as s
        where s.shard_group = its_group and s.number = any (string_to_array(numbers, E'\n')::integer[])
            and s.owner_incarnation = committer
    );
end
$$;
comment on function owns_all is
    'Whether it owns these shards of one group, in order of their numbers and each once, at these epochs.';

-- In this order everywhere, so that nothing deadlocks: fence or shard rows, message rows, keys in order, new messages.
-- A row that conflicts makes its statement wait until the other transaction is over, and the next statement sees what
-- that one wrote. A settled message could be stored a second time only by a repeated request whose first look was too
-- early; it looks again after it inserted.
create function store_messages(
    fence bigint, committer text, held_group text, held_numbers text, held_epochs text,
    message_ids text, groups text, numbers text, epochs text, types text, ids text, handlers text, counts text,
    bodies bytea[], header_texts text[], keys text[], key_hashes bytea[], payload_hashes bytea[],
    dues double precision[], delays double precision[], repeats boolean[]
) returns table (
    place integer, verdict smallint, found_id bigint, found_due double precision, clock double precision,
    found_outcome smallint, found_body bytea
)
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    if committer is null then
        perform hold_shards(string_to_array(groups, E'\n'), string_to_array(numbers, E'\n')::integer[]);
    elsif fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    -- Without on conflict, which costs a sixth of all, as long as nothing conflicts.
    if coalesce(key_hashes, payload_hashes) is null and coalesce(dues, delays) is null and repeats is null
        and owns_all(committer, held_group, held_numbers, held_epochs)
    then
        begin
            insert into message (
                message_id, attempts, shard_number, shard_group, entity_type, entity_id, handler, body, headers
            )
            select r.m::bigint, r.a::integer, r.n::integer, r.g, r.t, r.i, r.h, r.b, r.x
            from rows from (
                string_to_table(message_ids, E'\n'), string_to_table(groups, E'\n'), string_to_table(numbers, E'\n'),
                string_to_table(types, E'\n'), string_to_table(ids, E'\n'), string_to_table(handlers, E'\n'),
                string_to_table(counts, E'\n'), unnest(bodies), unnest(header_texts)
            ) as r (m, g, n, t, i, h, a, b, x)
            order by r.m::bigint;
            return;
        exception when unique_violation then
            null;
        end;
    end if;

    return query
    select c.*
    from store_one_by_one(
        committer, string_to_array(message_ids, E'\n')::bigint[], string_to_array(groups, E'\n'),
        string_to_array(numbers, E'\n')::integer[], string_to_array(epochs, E'\n')::bigint[],
        string_to_array(types, E'\n'), string_to_array(ids, E'\n'), string_to_array(handlers, E'\n'), bodies,
        header_texts, keys, key_hashes, payload_hashes, dues, delays, string_to_array(counts, E'\n')::integer[], repeats
    ) as c;
end
$$;
comment on function store_messages is
    'Rows only for what is not plainly new and due at once: 0 new, 1 pending, 2 settled, 3 key used with another '
    'payload, 4 fenced, 5 ask again. Without a committer: for whoever owns the shards, now or later.';

create function store_one_by_one(
    committer text,
    message_ids bigint[], groups text[], numbers integer[], epochs bigint[], types text[], ids text[],
    handlers text[], bodies bytea[], header_texts text[], keys text[], key_hashes bytea[], payload_hashes bytea[],
    dues double precision[], delays double precision[], counts integer[], repeats boolean[]
) returns table (
    place integer, verdict smallint, found_id bigint, found_due double precision, clock double precision,
    found_outcome smallint, found_body bytea
)
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    fresh bytea[];
    all_fresh boolean;
    written bigint[];
    settled bigint[];
    timed boolean;
begin
    if key_hashes is not null then
        with k as (
            insert into message_key (key_hash, message_id, payload_hash)
            select r.k, r.m, r.p
            from unnest(message_ids, groups, numbers, epochs, key_hashes, payload_hashes) as r (m, g, n, e, k, p)
            left join shard as s on s.shard_group = any (array[r.g]) and s.number = any (array[r.n])
            where r.k is not null and (committer is null or s.epoch = r.e and s.owner_incarnation = committer)
            order by r.k
            on conflict do nothing
            returning key_hash
        )
        select array_agg(k.key_hash), count(*) = (select count(r.k) from unnest(key_hashes) as r (k))
        into fresh, all_fresh
        from k;
    end if;

    with w as (
        insert into message (
            message_id, deliver_at, attempts, shard_number, shard_group, entity_type, entity_id, handler, body, headers,
            key, key_hash
        )
        select r.m, due_time(r.due, r.delay), r.a, r.n, r.g, r.t, r.i, r.h, r.b, r.x, r.y, r.k
        from unnest(
            message_ids, groups, numbers, epochs, types, ids, handlers, bodies, header_texts, keys, key_hashes, dues,
            delays, counts
        ) as r (m, g, n, e, t, i, h, b, x, y, k, due, delay, a)
        left join shard as s on s.shard_group = any (array[r.g]) and s.number = any (array[r.n])
        where (committer is null or s.epoch = r.e and s.owner_incarnation = committer)
            and (r.k is null or all_fresh or r.k = any (fresh))
        order by r.m
        on conflict do nothing
        returning message_id, deliver_at
    )
    select coalesce(array_agg(w.message_id), '{}'), bool_or(w.deliver_at is not null) into written, timed from w;

    if repeats is not null then
        with w as (
            delete from message as m
            using unnest(message_ids, repeats) as r (m, again)
            left join reply as q on q.message_id = any (array[r.m])
            left join dead_letter as d on d.message_id = any (array[r.m])
            where m.message_id = any (array[r.m]) and r.again and m.message_id = any (written)
                and (q.message_id is not null or d.message_id is not null)
            returning m.message_id
        )
        select array_agg(w.message_id) into settled from w;
        written := case when settled is null then written else array(
            select x.m from unnest(written) as x (m) where x.m <> all (settled)
        ) end;
    end if;

    if cardinality(written) = cardinality(message_ids) and not timed then
        return;
    end if;

    if key_hashes is not null then
        delete from message_key as k
        using unnest(key_hashes) as r (k)
        where k.key_hash = any (array[r.k])
            and not exists (select from message as m where m.message_id = any (array[k.message_id]))
            and not exists (select from reply as q where q.message_id = any (array[k.message_id]))
            and not exists (select from dead_letter as d where d.message_id = any (array[k.message_id]));
    end if;

    return query
    select
        r.place::integer,
        case
            when committer is not null and (s.epoch = r.e and s.owner_incarnation = committer) is not true then 4
            when r.m = any (written) then 0
            when k.payload_hash <> r.p then 3
            when m.message_id is not null then 1
            when q.message_id is not null or d.message_id is not null then 2
            else 5
        end::smallint,
        coalesce(k.message_id, r.m),
        coalesce(extract(epoch from m.deliver_at)::double precision, 0),
        extract(epoch from clock_timestamp())::double precision,
        coalesce(q.outcome, (case when d.message_id is not null then 3 end)::smallint),
        coalesce(q.body, d.error)
    from unnest(message_ids, groups, numbers, epochs, key_hashes, payload_hashes)
        with ordinality as r (m, g, n, e, k, p, place)
    left join shard as s on s.shard_group = any (array[r.g]) and s.number = any (array[r.n])
    left join message_key as k on k.key_hash = any (array[r.k])
    left join message as m on m.message_id = any (array[coalesce(k.message_id, r.m)])
    left join reply as q on q.message_id = any (array[coalesce(k.message_id, r.m)])
    left join dead_letter as d on d.message_id = any (array[coalesce(k.message_id, r.m)])
    where r.m <> all (written) or m.deliver_at is not null;
end
$$;
comment on function store_one_by_one is 'What store_messages says, whatever the messages are.';

-- Whoever takes one of the shards locks its row for update: it waits for this transaction, or this one for it.
create function hold_shards(groups text[], numbers integer[]) returns void
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    insert into shard (shard_group, number, epoch)
    select distinct r.g, r.n, 0 from unnest(groups, numbers) as r (g, n)
    order by r.g, r.n
    on conflict do nothing;

    perform 1
    from shard as s
    where (s.shard_group, s.number) in (select r.g, r.n from unnest(groups, numbers) as r (g, n))
    order by s.shard_group, s.number
    for share of s;
end
$$;
comment on function hold_shards is 'Keeps the owners of shards from changing until the transaction ends.';

create function start_runs(
    fence bigint, committer text, held_group text, held_numbers text, held_epochs text,
    message_ids text, groups text, numbers text, epochs text, counts text
) returns smallint[]
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    wanted bigint[] := string_to_array(message_ids, E'\n');
    started bigint[];
begin
    if fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    if owns_all(committer, held_group, held_numbers, held_epochs) then
        started := count_runs(message_ids, counts);
    else
        with w as (
            update message as m
            set attempts = r.a::integer
            from rows from (
                string_to_table(message_ids, E'\n'), string_to_table(groups, E'\n'), string_to_table(numbers, E'\n'),
                string_to_table(epochs, E'\n'), string_to_table(counts, E'\n')
            ) as r (m, g, n, e, a)
            join shard as s on s.shard_group = any (array[r.g]) and s.number = any (array[r.n::integer])
            where m.message_id = any (array[r.m::bigint])
                and coalesce(m.deliver_at, '-infinity') <= clock_timestamp()
                and s.epoch = r.e::bigint and s.owner_incarnation = committer
            returning m.message_id
        )
        select coalesce(array_agg(w.message_id), '{}') into started from w;
    end if;

    if cardinality(started) = cardinality(wanted) then
        return null;
    end if;

    return (
        select array_agg(
            case
                when r.m::bigint = any (started) then 0
                when (s.epoch = r.e::bigint and s.owner_incarnation = committer) is not true then 3
                when m.message_id is not null then 2
                else 1
            end::smallint
            order by r.place
        )
        from rows from (
            string_to_table(message_ids, E'\n'), string_to_table(groups, E'\n'), string_to_table(numbers, E'\n'),
            string_to_table(epochs, E'\n')
        ) with ordinality as r (m, g, n, e, place)
        left join shard as s on s.shard_group = any (array[r.g]) and s.number = any (array[r.n::integer])
        left join message as m on m.message_id = any (array[r.m::bigint])
    );
end
$$;
comment on function start_runs is
    'Counts runs before they start. Null: all may run. Else per row 0 run, 1 gone, 2 early, 3 fenced.';

create function count_runs(message_ids text, counts text) returns bigint[]
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    counted bigint[];
begin
    with w as (
        update message as m
        set attempts = r.a::integer
        from rows from (string_to_table(message_ids, E'\n'), string_to_table(counts, E'\n')) as r (m, a)
        where m.message_id = any (array[r.m::bigint])
            and coalesce(m.deliver_at, '-infinity') <= clock_timestamp()
        returning m.message_id
    )
    select coalesce(array_agg(w.message_id), '{}') into counted from w;
    return counted;
end
$$;
comment on function count_runs is 'Counts runs of messages that are pending and due; returns which those are.';

create function fail_runs(
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
        x.message_id, x.e, x.created_at, clock_timestamp(), x.deliver_at, x.attempts, x.shard_number, x.shard_group,
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
comment on function fail_runs is
    'Per row when the next run is due (Unix time), 0 for a dead letter, -1 fenced, -2 not pending any more.';

create function longer_history(history jsonb, attempt integer, error_type text, error_text text, traceback text)
returns jsonb
language sql volatile as $$
    select case when jsonb_array_length(h.line) > 20 then h.line - 0 else h.line end
    from (
        select coalesce(history, '[]') || jsonb_build_object(
            'attempt', attempt, 'at', extract(epoch from clock_timestamp())::double precision,
            'error_type', error_type, 'error_text', error_text, 'traceback', traceback
        ) as line
    ) as h
$$;
comment on function longer_history is 'The history with one more failed run; the last 20 are kept.';

-- A message that moves between tables while they are looked at one after the other is found the second time.
create function cancel_message(
    fence bigint, committer text, cancelled_id bigint, its_group text, its_number integer, its_epoch bigint,
    retention double precision
) returns smallint
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    if committer is null then
        perform hold_shards(array[its_group], array[its_number]);
    else
        if fence is not null then
            perform pg_advisory_xact_lock_shared(fence);
        end if;
        if not exists (
            select from shard as s
            where s.shard_group = its_group and s.number = its_number and s.epoch = its_epoch
                and s.owner_incarnation = committer
        ) then
            return 3;
        end if;
    end if;

    for attempt in 1 .. 2 loop
        with waiting as (
            delete from message as m where m.message_id = cancelled_id returning m.*
        ),
        dead as (
            delete from dead_letter as d where d.message_id = cancelled_id returning d.*
        ),
        gone as (
            select
                x.message_id, x.created_at, x.attempts, x.shard_number, x.shard_group, x.entity_type, x.entity_id,
                x.handler, x.key, x.key_hash
            from waiting as x
            union all
            select
                x.message_id, x.created_at, x.attempts, x.shard_number, x.shard_group, x.entity_type, x.entity_id,
                x.handler, x.key, x.key_hash
            from dead as x
        )
        insert into reply (
            message_id, epoch, created_at, finished_at, expires_at, attempts, shard_number, outcome, shard_group,
            entity_type, entity_id, handler, key, key_hash, body
        )
        select
            x.message_id, its_epoch, x.created_at, clock_timestamp(),
            clock_timestamp() + make_interval(secs => retention), x.attempts, x.shard_number, 2, x.shard_group,
            x.entity_type, x.entity_id, x.handler, x.key, x.key_hash, ''
        from gone as x;
        if found then
            return 0;
        end if;
        if exists (select from reply as q where q.message_id = cancelled_id) then
            return 1;
        end if;
    end loop;
    return 2;
end
$$;
comment on function cancel_message is '0 cancelled, 1 settled before, 2 unknown, 3 fenced.';

create function revive_messages(message_ids bigint[]) returns setof message
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    perform 1 from message as m where m.message_id = any (message_ids) order by m.message_id for update;

    return query
    update message as m set attempts = 0, deliver_at = null where m.message_id = any (message_ids) returning m.*;

    return query
    with gone as (
        delete from dead_letter as d where d.message_id = any (message_ids) returning d.*
    )
    insert into message as m (
        message_id, created_at, attempts, shard_number, shard_group, entity_type, entity_id, handler, body, headers, key,
        key_hash, history
    )
    select
        x.message_id, x.created_at, 0, x.shard_number, x.shard_group, x.entity_type, x.entity_id, x.handler, x.body,
        x.headers, x.key, x.key_hash, x.history
    from gone as x
    order by x.message_id
    returning m.*;
end
$$;
comment on function revive_messages is
    'Makes dead letters pending again, and pending messages due at once, with no attempts counted.';
