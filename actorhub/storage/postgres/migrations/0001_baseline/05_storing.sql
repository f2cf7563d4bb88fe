-- Storing durable messages.

-- Simple enough for the planner to inline it.
create function due_time(due double precision, delay double precision) returns timestamptz
language sql volatile as $$
    select case
        when to_timestamp(due) > clock_timestamp() then to_timestamp(due)
        when delay > 0 then clock_timestamp() + make_interval(secs => delay)
    end
$$;
comment on function due_time is 'When a message is due; null: at once.';

create type message_columns as (
    message_ids text,
    groups text,
    numbers text,
    epochs text,
    types text,
    ids text,
    handlers text,
    attempts text,
    bodies bytea[],
    headers text[],
    keys text[],
    key_hashes bytea[],
    payload_hashes bytea[],
    dues double precision[],
    delays double precision[],
    repeats boolean[]
);
comment on type message_columns is
    'Messages to be stored: a text has a line, an array an element for each; null: what none of them has.';

-- Locks are taken in this order everywhere, so that nothing deadlocks: fence or rows of shards, messages that are
-- there, keys in order, new messages in order.
--
-- Messages of one id or one key may be stored by several transactions at once: a caller that lost its link sends its
-- ask again by another runner, a batch whose connection was lost is sent again while the first one may still be under
-- way. An insert that meets the other one's row waits until that transaction is over; the next statement sees what it
-- wrote.
create function store_messages(fence bigint, committer text, held held_shards, messages message_columns)
returns table (
    place integer, verdict smallint, found_id bigint, found_due double precision, clock double precision,
    found_outcome smallint, found_body bytea
)
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    if committer is null then
        perform hold_shards(
            string_to_array(messages.groups, E'\n'), string_to_array(messages.numbers, E'\n')::integer[]
        );
    elsif fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    -- As long as nothing conflicts, this goes without on conflict, which costs a sixth of all.
    if coalesce(messages.key_hashes, messages.payload_hashes) is null
        and coalesce(messages.dues, messages.delays) is null and messages.repeats is null and owns_all(committer, held)
    then
        begin
            insert into message (
                message_id, attempts, shard_number, shard_group, entity_type, entity_id, handler, body, headers
            )
            select
                r.message_id::bigint, r.attempts::integer, r.number::integer, r.shard_group, r.type, r.id, r.handler,
                r.body, r.headers
            from rows from (
                string_to_table(messages.message_ids, E'\n'), string_to_table(messages.groups, E'\n'),
                string_to_table(messages.numbers, E'\n'), string_to_table(messages.types, E'\n'),
                string_to_table(messages.ids, E'\n'), string_to_table(messages.handlers, E'\n'),
                string_to_table(messages.attempts, E'\n'), unnest(messages.bodies), unnest(messages.headers)
            ) as r (message_id, shard_group, number, type, id, handler, attempts, body, headers)
            order by r.message_id::bigint;
            return;
        exception when unique_violation then
            null;
        end;
    end if;

    return query select c.* from store_one_by_one(committer, messages) as c;
end
$$;
comment on function store_messages is
    'Rows only for what is not plainly new and due at once: 0 new, 1 pending, 2 settled, 3 key used with another '
    'payload, 4 fenced, 5 ask again. Without a committer: for whoever owns the shards, now or later.';

create function store_one_by_one(committer text, messages message_columns)
returns table (
    place integer, verdict smallint, found_id bigint, found_due double precision, clock double precision,
    found_outcome smallint, found_body bytea
)
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    message_ids bigint[] := string_to_array(messages.message_ids, E'\n')::bigint[];
    groups text[] := string_to_array(messages.groups, E'\n');
    numbers integer[] := string_to_array(messages.numbers, E'\n')::integer[];
    epochs bigint[] := string_to_array(messages.epochs, E'\n')::bigint[];
    fresh bytea[];
    all_fresh boolean;
    written bigint[];
    settled bigint[];
    timed boolean;
begin
    if messages.key_hashes is not null then
        with k as (
            insert into message_key (key_hash, message_id, payload_hash)
            select r.key_hash, r.message_id, r.payload_hash
            from unnest(message_ids, groups, numbers, epochs, messages.key_hashes, messages.payload_hashes)
                as r (message_id, shard_group, number, epoch, key_hash, payload_hash)
            left join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
            where r.key_hash is not null
                and (committer is null or s.epoch = r.epoch and s.owner_incarnation = committer)
            order by r.key_hash
            on conflict do nothing
            returning key_hash
        )
        select array_agg(k.key_hash), count(*) = (select count(r.hash) from unnest(messages.key_hashes) as r (hash))
        into fresh, all_fresh
        from k;
    end if;

    with w as (
        insert into message (
            message_id, deliver_at, attempts, shard_number, shard_group, entity_type, entity_id, handler, body, headers,
            key, key_hash
        )
        select
            r.message_id, due_time(r.due, r.delay), r.attempts::integer, r.number, r.shard_group, r.type, r.id,
            r.handler, r.body, r.headers, r.key, r.key_hash
        from rows from (
            unnest(
                message_ids, groups, numbers, epochs, messages.bodies, messages.headers, messages.keys,
                messages.key_hashes, messages.dues, messages.delays
            ),
            string_to_table(messages.types, E'\n'), string_to_table(messages.ids, E'\n'),
            string_to_table(messages.handlers, E'\n'), string_to_table(messages.attempts, E'\n')
        ) as r (
            message_id, shard_group, number, epoch, body, headers, key, key_hash, due, delay, type, id, handler,
            attempts
        )
        left join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
        where (committer is null or s.epoch = r.epoch and s.owner_incarnation = committer)
            and (r.key_hash is null or all_fresh or r.key_hash = any (fresh))
        order by r.message_id
        on conflict do nothing
        returning message_id, deliver_at
    )
    select coalesce(array_agg(w.message_id), '{}'), bool_or(w.deliver_at is not null) into written, timed from w;

    -- A message that was settled has left the table, so inserting it again does not conflict. Whoever repeats a request
    -- says so: then its row is removed again if the message is found among the settled ones. They are searched after
    -- the insert. If they were searched before it, the first request's run might be committed in between, and the
    -- message would run twice.
    if messages.repeats is not null then
        with w as (
            delete from message as m
            using unnest(message_ids, messages.repeats) as r (message_id, is_repeated)
            left join reply as q on q.message_id = any (array[r.message_id])
            left join dead_letter as d on d.message_id = any (array[r.message_id])
            where m.message_id = any (array[r.message_id]) and r.is_repeated and m.message_id = any (written)
                and (q.message_id is not null or d.message_id is not null)
            returning m.message_id
        )
        select array_agg(w.message_id) into settled from w;
        written := case when settled is null then written else array(
            select x.id from unnest(written) as x (id) where x.id <> all (settled)
        ) end;
    end if;

    if cardinality(written) = cardinality(message_ids) and not timed then
        return;
    end if;

    -- A key whose message is nowhere (somebody deleted it by hand) is free again: verdict 5 makes the caller ask again.
    if messages.key_hashes is not null then
        delete from message_key as k
        using unnest(messages.key_hashes) as r (key_hash)
        where k.key_hash = any (array[r.key_hash])
            and not exists (select from message as m where m.message_id = any (array[k.message_id]))
            and not exists (select from reply as q where q.message_id = any (array[k.message_id]))
            and not exists (select from dead_letter as d where d.message_id = any (array[k.message_id]));
    end if;

    return query
    select
        r.place::integer,
        case
            when committer is not null and (s.epoch = r.epoch and s.owner_incarnation = committer) is not true then 4
            when r.message_id = any (written) then 0
            when k.payload_hash <> r.payload_hash then 3
            when m.message_id is not null then 1
            when q.message_id is not null or d.message_id is not null then 2
            else 5
        end::smallint,
        coalesce(k.message_id, r.message_id),
        coalesce(extract(epoch from m.deliver_at)::double precision, 0),
        extract(epoch from clock_timestamp())::double precision,
        coalesce(q.outcome, (case when d.message_id is not null then 3 end)::smallint),
        coalesce(q.body, d.error)
    from unnest(message_ids, groups, numbers, epochs, messages.key_hashes, messages.payload_hashes)
        with ordinality as r (message_id, shard_group, number, epoch, key_hash, payload_hash, place)
    left join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
    left join message_key as k on k.key_hash = any (array[r.key_hash])
    left join message as m on m.message_id = any (array[coalesce(k.message_id, r.message_id)])
    left join reply as q on q.message_id = any (array[coalesce(k.message_id, r.message_id)])
    left join dead_letter as d on d.message_id = any (array[coalesce(k.message_id, r.message_id)])
    where r.message_id <> all (written) or m.deliver_at is not null;
end
$$;
comment on function store_one_by_one is 'What store_messages says, whatever the messages are.';
