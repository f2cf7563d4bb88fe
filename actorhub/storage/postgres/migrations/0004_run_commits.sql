-- What handler runs leave behind, each all or nothing, many in one transaction.

-- Who may write is settled by the statement that deletes the messages; what comes after it either succeeds for all of
-- those or fails the whole with a serialization error, to be repeated. That happens when a former connection's twin of
-- this call, or another sender with the same key, was committed in between. Next runs are counted last: their rows are
-- locked out of order, which is safe because nothing else locks more than one message of an entity.
create function commit_runs(
    fence bigint, committer text, held_group text, held_numbers text, held_epochs text,
    groups text, numbers text, epochs text, message_ids text, outcomes text, retentions text, replies bytea[],
    next_message_ids text, next_counts text,
    types text[], ids text[], versions bigint[], bodies bytea[],
    new_runs integer[], new_message_ids bigint[], new_groups text[], new_numbers integer[], new_types text[],
    new_ids text[], new_handlers text[], new_bodies bytea[], new_headers text[], new_keys text[],
    new_key_hashes bytea[], new_payload_hashes bytea[], new_dues double precision[],
    new_delays double precision[], new_repeats boolean[]
) returns smallint[]
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    won bigint[];
    verdicts smallint[];
    started bigint[];
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'a handler''s transaction must stay at isolation level read committed'
        using errcode = 'feature_not_supported';
    end if;
    if fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    if versions is null and new_runs is null and owns_all(committer, held_group, held_numbers, held_epochs) then
        with gone as (
            delete from message as m
            using (
                select r.*
                from rows from (
                    string_to_table(message_ids, E'\n'), string_to_table(epochs, E'\n'),
                    string_to_table(outcomes, E'\n'), string_to_table(retentions, E'\n'), unnest(replies)
                ) with ordinality as r (m, e, o, life, b, place)
                order by r.m::bigint
            ) as r
            where m.message_id = any (array[r.m::bigint])
            returning
                m.message_id, r.e, m.created_at, r.life, m.attempts, m.shard_number, r.o, m.shard_group, m.entity_type,
                m.entity_id, m.handler, m.key, m.key_hash, r.b, r.place
        ),
        answered as (
            insert into reply (
                message_id, epoch, created_at, finished_at, expires_at, attempts, shard_number, outcome, shard_group,
                entity_type, entity_id, handler, key, key_hash, body
            )
            select
                x.message_id, x.e::bigint, x.created_at, clock_timestamp(),
                clock_timestamp() + make_interval(secs => x.life::double precision), x.attempts, x.shard_number,
                x.o::smallint, x.shard_group, x.entity_type, x.entity_id, x.handler, x.key, x.key_hash, x.b
            from gone as x
        )
        select coalesce(array_agg(x.place), '{}') into won from gone as x;

        if cardinality(won) < cardinality(replies) then
            verdicts := commit_verdicts(
                committer, string_to_array(groups, E'\n'), string_to_array(numbers, E'\n')::integer[],
                string_to_array(epochs, E'\n')::bigint[], types, ids, versions, bodies,
                string_to_array(message_ids, E'\n')::bigint[], string_to_array(outcomes, E'\n')::smallint[], replies,
                new_runs, new_message_ids, '{}', won
            );
        end if;
    else
        verdicts := commit_one_by_one(
            committer, string_to_array(groups, E'\n'), string_to_array(numbers, E'\n')::integer[],
            string_to_array(epochs, E'\n')::bigint[], types, ids, versions, bodies,
            string_to_array(message_ids, E'\n', '0')::bigint[], string_to_array(outcomes, E'\n')::smallint[], replies,
            string_to_array(retentions, E'\n')::double precision[], new_runs, new_message_ids, new_groups, new_numbers,
            new_types, new_ids, new_handlers, new_bodies, new_headers, new_keys, new_key_hashes, new_payload_hashes,
            new_dues, new_delays, new_repeats
        );
    end if;

    if next_message_ids is null then
        return verdicts;
    end if;
    with w as (
        update message as m
        set attempts = r.a::integer
        from rows from (string_to_table(next_message_ids, E'\n'), string_to_table(next_counts, E'\n'))
            with ordinality as r (m, a, place)
        where m.message_id = any (array[r.m::bigint])
            and coalesce(verdicts[r.place], 0) = 0
            and coalesce(m.deliver_at, '-infinity') <= clock_timestamp()
        returning r.place
    )
    select coalesce(array_agg(w.place), '{}') into started from w;

    if verdicts is null
        and cardinality(started) = cardinality(array_remove(string_to_array(next_message_ids, E'\n'), '0'))
    then
        return null;
    end if;
    return array(
        select
            case
                when r.m <> '0' and coalesce(r.verdict, 0) = 0 and r.place <> all (started) then 6
                else coalesce(r.verdict, 0)
            end
        from rows from (string_to_table(next_message_ids, E'\n'), unnest(verdicts))
            with ordinality as r (m, verdict, place)
        order by r.place
    );
end
$$;
comment on function commit_runs is
    'Null: all were written, and all next runs counted. Else per row 0 written, 1 fenced, 2 version conflict, 3 not '
    'pending any more, 4 a key of its outbox was used with another payload, 6 written now or before, but its next run '
    'was not counted.';

create function commit_one_by_one(
    committer text,
    groups text[], numbers integer[], epochs bigint[], types text[], ids text[], versions bigint[], bodies bytea[],
    message_ids bigint[], outcomes smallint[], replies bytea[], retentions double precision[],
    new_runs integer[], new_message_ids bigint[], new_groups text[], new_numbers integer[], new_types text[],
    new_ids text[], new_handlers text[], new_bodies bytea[], new_headers text[], new_keys text[],
    new_key_hashes bytea[], new_payload_hashes bytea[], new_dues double precision[],
    new_delays double precision[], new_repeats boolean[]
) returns smallint[]
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    clashing bigint[] := '{}';
    won bigint[];
    all_won boolean;
    wanted bigint;
    written bigint := 0;
    updated bigint;
begin
    if new_key_hashes is not null then
        clashing := clashing_runs(new_runs, new_key_hashes, new_payload_hashes);
    end if;

    with run as materialized (
        select r.*
        from unnest(
            groups, numbers, epochs, types, ids, versions, message_ids, outcomes, replies, retentions
        ) with ordinality as r (g, n, e, t, i, v, m, o, b, life, place)
        join shard as s on s.shard_group = any (array[r.g]) and s.number = any (array[r.n])
        where s.epoch = r.e and s.owner_incarnation = committer
            and r.place <> all (clashing)
            and (coalesce(r.v, 0) = 0 or coalesce(
                (
                    select x.version = r.v - 1 and x.epoch <= r.e
                    from entity_state as x
                    where x.entity_type = any (array[r.t]) and x.entity_id = any (array[r.i])
                ),
                r.v = 1
            ))
        order by r.m
    ),
    gone as (
        delete from message as m
        using run as r
        where m.message_id = any (array[r.m])
        returning
            m.message_id, r.e, m.created_at, r.life, m.attempts, m.shard_number, r.o, m.shard_group, m.entity_type,
            m.entity_id, m.handler, m.key, m.key_hash, r.b, r.place
    ),
    answered as (
        insert into reply (
            message_id, epoch, created_at, finished_at, expires_at, attempts, shard_number, outcome, shard_group,
            entity_type, entity_id, handler, key, key_hash, body
        )
        select
            x.message_id, x.e, x.created_at, clock_timestamp(),
            clock_timestamp() + make_interval(secs => x.life), x.attempts, x.shard_number, x.o,
            x.shard_group, x.entity_type, x.entity_id, x.handler, x.key, x.key_hash, x.b
        from gone as x
    )
    select coalesce(array_agg(w.place), '{}'), count(*) = cardinality(groups) into won, all_won
    from (
        select x.place from gone as x
        union all
        select r.place from run as r where r.m is null
    ) as w;

    if 0 < any (versions) then
        insert into entity_state (entity_type, entity_id, version, epoch, shard_group, shard_number, updated_at, data)
        select r.t, r.i, r.v, r.e, r.g, r.n, now(), r.b
        from unnest(groups, numbers, epochs, types, ids, versions, bodies)
            with ordinality as r (g, n, e, t, i, v, b, place)
        where r.v = 1 and (all_won or r.place = any (won))
        on conflict do nothing;
        get diagnostics written = row_count;

        update entity_state as x
        set version = r.v, epoch = r.e, shard_group = r.g, shard_number = r.n, updated_at = now(), data = r.b
        from unnest(groups, numbers, epochs, types, ids, versions, bodies)
            with ordinality as r (g, n, e, t, i, v, b, place)
        where r.v > 1 and (all_won or r.place = any (won))
            and x.entity_type = any (array[r.t]) and x.entity_id = any (array[r.i])
            and x.version = r.v - 1 and x.epoch <= r.e;
        get diagnostics updated = row_count;

        select count(*) into wanted
        from unnest(versions) with ordinality as r (v, place)
        where r.v > 0 and (all_won or r.place = any (won));
        if written + updated < wanted then
            raise exception 'a state was written at the same time' using errcode = 'serialization_failure';
        end if;
    end if;

    if new_runs is not null then
        perform store_outbox(
            won, new_runs, new_message_ids, new_groups, new_numbers, new_types, new_ids, new_handlers, new_bodies,
            new_headers, new_keys, new_key_hashes, new_payload_hashes, new_dues, new_delays, new_repeats
        );
    end if;

    if all_won then
        return null;
    end if;
    return commit_verdicts(
        committer, groups, numbers, epochs, types, ids, versions, bodies, message_ids, outcomes, replies, new_runs,
        new_message_ids, clashing, won
    );
end
$$;
comment on function commit_one_by_one is 'What commit_runs says, whatever the runs leave behind, without next runs.';

create function clashing_runs(new_runs integer[], new_key_hashes bytea[], new_payload_hashes bytea[]) returns bigint[]
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    return array(
        select distinct o.run::bigint
        from unnest(new_runs, new_key_hashes, new_payload_hashes) as o (run, k, p)
        join message_key as k on k.key_hash = any (array[o.k])
        where k.payload_hash <> o.p
    );
end
$$;
comment on function clashing_runs is 'The runs whose outbox has a key that was used before with another payload.';

create function store_outbox(
    won bigint[], new_runs integer[], new_message_ids bigint[], new_groups text[], new_numbers integer[],
    new_types text[], new_ids text[], new_handlers text[], new_bodies bytea[], new_headers text[], new_keys text[],
    new_key_hashes bytea[], new_payload_hashes bytea[], new_dues double precision[],
    new_delays double precision[], new_repeats boolean[]
) returns void
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    if new_key_hashes is not null then
        insert into message_key (key_hash, message_id, payload_hash)
        select o.k, o.m, o.p
        from unnest(new_runs, new_message_ids, new_key_hashes, new_payload_hashes) as o (run, m, k, p)
        where o.k is not null and o.run = any (won)
        order by o.k
        on conflict do nothing;

        if won && clashing_runs(new_runs, new_key_hashes, new_payload_hashes) then
            raise exception 'a key was used at the same time' using errcode = 'serialization_failure';
        end if;
    end if;

    insert into message (
        message_id, deliver_at, attempts, shard_number, shard_group, entity_type, entity_id, handler, body, headers, key,
        key_hash
    )
    select o.m, due_time(o.due, o.delay), 0, o.n, o.g, o.t, o.i, o.h, o.b, o.x, o.y, o.z
    from unnest(
        new_runs, new_message_ids, new_groups, new_numbers, new_types, new_ids, new_handlers, new_bodies, new_headers,
        new_keys, new_key_hashes, new_dues, new_delays
    ) as o (run, m, g, n, t, i, h, b, x, y, z, due, delay)
    left join message_key as k on k.key_hash = any (array[o.z])
    where o.run = any (won) and (o.z is null or k.message_id = any (array[o.m]))
    order by o.m
    on conflict do nothing;

    if new_repeats is not null then
        delete from message as m
        using unnest(new_message_ids, new_repeats) as o (m, again)
        left join reply as q on q.message_id = any (array[o.m])
        left join dead_letter as d on d.message_id = any (array[o.m])
        where m.message_id = any (array[o.m]) and o.again and (q.message_id is not null or d.message_id is not null);
    end if;
end
$$;
comment on function store_outbox is 'Stores the messages that handlers told, those of the runs that may be written.';

create function commit_verdicts(
    committer text, groups text[], numbers integer[], epochs bigint[], types text[], ids text[], versions bigint[],
    bodies bytea[], message_ids bigint[], outcomes smallint[], replies bytea[], new_runs integer[],
    new_message_ids bigint[], clashing bigint[], won bigint[]
) returns smallint[]
language plpgsql set search_path from current set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    told bigint[];
    verdicts smallint[];
begin
    told := array(
        select o.run
        from unnest(new_runs, new_message_ids) as o (run, m)
        left join message as m on m.message_id = any (array[o.m])
        left join reply as q on q.message_id = any (array[o.m])
        left join dead_letter as d on d.message_id = any (array[o.m])
        where m.message_id is not null or q.message_id is not null or d.message_id is not null
    );

    select
        array_agg(
            case
                when r.place = any (won) then 0
                when q.epoch = r.e and q.outcome = r.o and q.body = r.b then 6
                when r.m is null and r.v > 0 and x.version = r.v and x.epoch = r.e and x.data = r.d then 6
                when r.m is null and coalesce(r.v, 0) = 0 and r.place = any (told) then 6
                when (s.epoch = r.e and s.owner_incarnation = committer) is not true then 1
                when r.m is not null and m.message_id is null then 3
                when r.v > 0 and (coalesce(x.version, 0) <> r.v - 1 or x.epoch > r.e) then 2
                when r.place = any (clashing) then 4
                else 5
            end::smallint
            order by r.place
        )
    into verdicts
    from unnest(groups, numbers, epochs, types, ids, versions, bodies, message_ids, outcomes, replies)
        with ordinality as r (g, n, e, t, i, v, d, m, o, b, place)
    left join shard as s on s.shard_group = any (array[r.g]) and s.number = any (array[r.n])
    left join entity_state as x on r.v > 0 and x.entity_type = any (array[r.t]) and x.entity_id = any (array[r.i])
    left join message as m on m.message_id = any (array[r.m])
    left join reply as q on q.message_id = any (array[r.m]);

    if 5 = any (verdicts) then
        raise exception 'what a run depends on changed at the same time' using errcode = 'serialization_failure';
    end if;
    return verdicts;
end
$$;
comment on function commit_verdicts is 'Why runs were not written, or that they were before.';
