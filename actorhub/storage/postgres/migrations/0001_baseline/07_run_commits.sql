-- What handler runs leave behind, each all or nothing, many in one transaction.

create type run_columns as (
    groups text,
    numbers text,
    epochs text,
    message_ids text,
    outcomes text,
    retentions text,
    replies bytea[],
    next_message_ids text,
    next_attempts text,
    types text[],
    ids text[],
    versions bigint[],
    bodies bytea[]
);
comment on type run_columns is
    'Runs to be committed: a text has a line, an array an element for each; null: what none of them has. Message 0: a '
    'volatile one ran. Version 0: the state stays.';

-- The gate. A run's commit may meet its own twin (of a batch that was sent again over a new connection), a
-- cancellation, a second run of the message by a former owner, or another writer of the state. Whether a run may be
-- written is settled by one statement: it picks the runs whose shard has this owner and epoch and whose state follows
-- the stored one, and deletes their messages. Of all who want the message's row, one deletes it. What comes after the
-- gate either succeeds for every run that passed, or fails the whole transaction with a serialization error, to be
-- repeated; that happens when a twin, or another sender with the same key, was committed in between.
--
-- Repeating is harmless: a reply with this epoch and body counts as written, a stored id or key is stored once, and a
-- run that is counted to n stays at n.
--
-- Next runs are counted last: their rows are locked out of order, which is safe because nothing else locks more than
-- one message of an entity.
create function commit_runs(
    fence bigint, committer text, held held_shards, runs run_columns, tellers integer[], told message_columns
) returns smallint[]
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    won bigint[];
    verdicts smallint[];
    started bigint[];
begin
    -- A handler's own SQL may have changed the level of this transaction. Under a stricter one the fence proves
    -- nothing.
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'a handler''s transaction must stay at isolation level read committed'
        using errcode = 'feature_not_supported';
    end if;
    if fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    if runs.versions is null and tellers is null and owns_all(committer, held) then
        with gone as (
            delete from message as m
            using (
                select r.*
                from rows from (
                    string_to_table(runs.message_ids, E'\n'), string_to_table(runs.epochs, E'\n'),
                    string_to_table(runs.outcomes, E'\n'), string_to_table(runs.retentions, E'\n'), unnest(runs.replies)
                ) with ordinality as r (message_id, epoch, outcome, retention, reply, place)
                order by r.message_id::bigint
            ) as r
            where m.message_id = any (array[r.message_id::bigint])
            returning
                m.message_id, r.epoch, m.created_at, r.retention, m.attempts, m.shard_number, r.outcome, m.shard_group,
                m.entity_type, m.entity_id, m.handler, m.key, m.key_hash, r.reply, r.place
        ),
        answered as (
            insert into reply (
                message_id, epoch, created_at, finished_at, expires_at, attempts, shard_number, outcome, shard_group,
                entity_type, entity_id, handler, key, key_hash, body
            )
            select
                x.message_id, x.epoch::bigint, x.created_at, clock_timestamp(),
                clock_timestamp() + make_interval(secs => x.retention::double precision), x.attempts, x.shard_number,
                x.outcome::smallint, x.shard_group, x.entity_type, x.entity_id, x.handler, x.key, x.key_hash, x.reply
            from gone as x
        )
        select coalesce(array_agg(x.place), '{}') into won from gone as x;

        if cardinality(won) < cardinality(runs.replies) then
            verdicts := commit_verdicts(committer, runs, tellers, told, '{}', won);
        end if;
    else
        verdicts := commit_one_by_one(committer, runs, tellers, told);
    end if;

    if runs.next_message_ids is null then
        return verdicts;
    end if;
    with w as (
        update message as m
        set attempts = r.attempt::integer
        from rows from (
            string_to_table(runs.next_message_ids, E'\n'), string_to_table(runs.next_attempts, E'\n')
        ) with ordinality as r (message_id, attempt, place)
        where m.message_id = any (array[r.message_id::bigint])
            and coalesce(verdicts[r.place], 0) = 0
            and coalesce(m.deliver_at, '-infinity') <= clock_timestamp()
        returning r.place
    )
    select coalesce(array_agg(w.place), '{}') into started from w;

    if verdicts is null
        and cardinality(started) = cardinality(array_remove(string_to_array(runs.next_message_ids, E'\n'), '0'))
    then
        return null;
    end if;
    return array(
        select
            case
                when r.message_id <> '0' and coalesce(r.verdict, 0) = 0 and r.place <> all (started) then 6
                else coalesce(r.verdict, 0)
            end
        from rows from (string_to_table(runs.next_message_ids, E'\n'), unnest(verdicts))
            with ordinality as r (message_id, verdict, place)
        order by r.place
    );
end
$$;
comment on function commit_runs is
    'Null: all were written, and all next runs counted. Else per row 0 written, 1 fenced, 2 version conflict, 3 no '
    'longer pending, 4 a key of its outbox was used with another payload, 6 written now or before, but its next run '
    'was not counted. Of each told message, tellers says which run (from 1) told it.';

create function commit_one_by_one(committer text, runs run_columns, tellers integer[], told message_columns)
returns smallint[]
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    groups text[] := string_to_array(runs.groups, E'\n');
    numbers integer[] := string_to_array(runs.numbers, E'\n')::integer[];
    epochs bigint[] := string_to_array(runs.epochs, E'\n')::bigint[];
    clashing bigint[] := '{}';
    won bigint[];
    all_won boolean;
    wanted bigint;
    written bigint;
    updated bigint;
begin
    if told.key_hashes is not null then
        clashing := clashing_runs(tellers, told);
    end if;

    with run as materialized (
        select r.*
        from unnest(
            groups, numbers, epochs, runs.types, runs.ids, runs.versions,
            string_to_array(runs.message_ids, E'\n', '0')::bigint[], string_to_array(runs.outcomes, E'\n')::smallint[],
            runs.replies, string_to_array(runs.retentions, E'\n')::double precision[]
        ) with ordinality as r (
            shard_group, number, epoch, type, id, version, message_id, outcome, reply, retention, place
        )
        join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
        where s.epoch = r.epoch and s.owner_incarnation = committer
            and r.place <> all (clashing)
            and (coalesce(r.version, 0) = 0 or coalesce(
                (
                    select x.version = r.version - 1 and x.epoch <= r.epoch
                    from entity_state as x
                    where x.entity_type = any (array[r.type]) and x.entity_id = any (array[r.id])
                ),
                r.version = 1
            ))
        order by r.message_id
    ),
    gone as (
        delete from message as m
        using run as r
        where m.message_id = any (array[r.message_id])
        returning
            m.message_id, r.epoch, m.created_at, r.retention, m.attempts, m.shard_number, r.outcome, m.shard_group,
            m.entity_type, m.entity_id, m.handler, m.key, m.key_hash, r.reply, r.place
    ),
    answered as (
        insert into reply (
            message_id, epoch, created_at, finished_at, expires_at, attempts, shard_number, outcome, shard_group,
            entity_type, entity_id, handler, key, key_hash, body
        )
        select
            x.message_id, x.epoch, x.created_at, clock_timestamp(),
            clock_timestamp() + make_interval(secs => x.retention), x.attempts, x.shard_number, x.outcome,
            x.shard_group, x.entity_type, x.entity_id, x.handler, x.key, x.key_hash, x.reply
        from gone as x
    )
    select coalesce(array_agg(w.place), '{}'), count(*) = cardinality(groups) into won, all_won
    from (
        select x.place from gone as x
        union all
        select r.place from run as r where r.message_id is null
    ) as w;

    if 0 < any (runs.versions) then
        insert into entity_state (entity_type, entity_id, version, epoch, shard_group, shard_number, updated_at, data)
        select r.type, r.id, r.version, r.epoch, r.shard_group, r.number, now(), r.body
        from unnest(groups, numbers, epochs, runs.types, runs.ids, runs.versions, runs.bodies)
            with ordinality as r (shard_group, number, epoch, type, id, version, body, place)
        where r.version = 1 and (all_won or r.place = any (won))
        on conflict do nothing;
        get diagnostics written = row_count;

        update entity_state as x
        set version = r.version, epoch = r.epoch, shard_group = r.shard_group, shard_number = r.number,
            updated_at = now(), data = r.body
        from unnest(groups, numbers, epochs, runs.types, runs.ids, runs.versions, runs.bodies)
            with ordinality as r (shard_group, number, epoch, type, id, version, body, place)
        where r.version > 1 and (all_won or r.place = any (won))
            and x.entity_type = any (array[r.type]) and x.entity_id = any (array[r.id])
            and x.version = r.version - 1 and x.epoch <= r.epoch;
        get diagnostics updated = row_count;

        select count(*) into wanted
        from unnest(runs.versions) with ordinality as r (version, place)
        where r.version > 0 and (all_won or r.place = any (won));
        if written + updated < wanted then
            raise exception 'a state was written at the same time' using errcode = 'serialization_failure';
        end if;
    end if;
    if tellers is not null then
        perform store_outbox(won, tellers, told);
    end if;

    if all_won then
        return null;
    end if;
    return commit_verdicts(committer, runs, tellers, told, clashing, won);
end
$$;
comment on function commit_one_by_one is 'What commit_runs says, whatever the runs leave behind, without next runs.';

create function clashing_runs(tellers integer[], told message_columns) returns bigint[]
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    return array(
        select distinct o.teller::bigint
        from unnest(tellers, told.key_hashes, told.payload_hashes) as o (teller, key_hash, payload_hash)
        join message_key as k on k.key_hash = any (array[o.key_hash])
        where k.payload_hash <> o.payload_hash
    );
end
$$;
comment on function clashing_runs is 'The runs whose outbox has a key that was used before with another payload.';

-- The keys come first. Another sender's insert of the same key holds this one up until that transaction is over; then
-- the second check finds either the same payload, and the message that has the key is the one that counts, or another
-- payload, and the run should not have passed the gate.
create function store_outbox(won bigint[], tellers integer[], told message_columns) returns void
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    message_ids bigint[] := string_to_array(told.message_ids, E'\n')::bigint[];
begin
    if told.key_hashes is not null then
        insert into message_key (key_hash, message_id, payload_hash)
        select o.key_hash, o.message_id, o.payload_hash
        from unnest(tellers, message_ids, told.key_hashes, told.payload_hashes)
            as o (teller, message_id, key_hash, payload_hash)
        where o.key_hash is not null and o.teller = any (won)
        order by o.key_hash
        on conflict do nothing;

        if won && clashing_runs(tellers, told) then
            raise exception 'a key was used at the same time' using errcode = 'serialization_failure';
        end if;
    end if;

    insert into message (
        message_id, deliver_at, attempts, shard_number, shard_group, entity_type, entity_id, handler, body, headers,
        key, key_hash
    )
    select
        o.message_id, due_time(o.due, o.delay), o.attempts::integer, o.number::integer, o.shard_group, o.type, o.id,
        o.handler, o.body, o.headers, o.key, o.key_hash
    from rows from (
        unnest(
            tellers, message_ids, told.bodies, told.headers, told.keys, told.key_hashes, told.dues, told.delays
        ),
        string_to_table(told.groups, E'\n'), string_to_table(told.numbers, E'\n'), string_to_table(told.types, E'\n'),
        string_to_table(told.ids, E'\n'), string_to_table(told.handlers, E'\n'), string_to_table(told.attempts, E'\n')
    ) as o (
        teller, message_id, body, headers, key, key_hash, due, delay, shard_group, number, type, id, handler, attempts
    )
    left join message_key as k on k.key_hash = any (array[o.key_hash])
    where o.teller = any (won) and (o.key_hash is null or k.message_id = any (array[o.message_id]))
    order by o.message_id
    on conflict do nothing;

    if told.repeats is not null then
        delete from message as m
        using unnest(message_ids, told.repeats) as o (message_id, is_repeated)
        left join reply as q on q.message_id = any (array[o.message_id])
        left join dead_letter as d on d.message_id = any (array[o.message_id])
        where m.message_id = any (array[o.message_id]) and o.is_repeated
            and (q.message_id is not null or d.message_id is not null);
    end if;
end
$$;
comment on function store_outbox is 'Stores the messages that handlers told, those of the runs that may be written.';

-- Runs that did not pass the gate were refused, or they were written before, by a twin of this call: then what the twin
-- left is exactly what they would leave. If neither explains it, something changed between the gate and this statement:
-- then the whole is repeated.
create function commit_verdicts(
    committer text, runs run_columns, tellers integer[], told message_columns, clashing bigint[], won bigint[]
) returns smallint[]
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    told_before bigint[];
    verdicts smallint[];
begin
    told_before := array(
        select o.teller
        from unnest(tellers, string_to_array(told.message_ids, E'\n')::bigint[]) as o (teller, message_id)
        left join message as m on m.message_id = any (array[o.message_id])
        left join reply as q on q.message_id = any (array[o.message_id])
        left join dead_letter as d on d.message_id = any (array[o.message_id])
        where m.message_id is not null or q.message_id is not null or d.message_id is not null
    );

    select
        array_agg(
            case
                when r.place = any (won) then 0
                when q.epoch = r.epoch and q.outcome = r.outcome and q.body = r.reply then 6
                when r.message_id is null and r.version > 0
                    and x.version = r.version and x.epoch = r.epoch and x.data = r.body then 6
                when r.message_id is null and coalesce(r.version, 0) = 0 and r.place = any (told_before) then 6
                when (s.epoch = r.epoch and s.owner_incarnation = committer) is not true then 1
                when r.message_id is not null and m.message_id is null then 3
                when r.version > 0 and (coalesce(x.version, 0) <> r.version - 1 or x.epoch > r.epoch) then 2
                when r.place = any (clashing) then 4
                else 5
            end::smallint
            order by r.place
        )
    into verdicts
    from unnest(
        string_to_array(runs.groups, E'\n'), string_to_array(runs.numbers, E'\n')::integer[],
        string_to_array(runs.epochs, E'\n')::bigint[], runs.types, runs.ids, runs.versions, runs.bodies,
        string_to_array(runs.message_ids, E'\n', '0')::bigint[], string_to_array(runs.outcomes, E'\n')::smallint[],
        runs.replies
    ) with ordinality as r (
        shard_group, number, epoch, type, id, version, body, message_id, outcome, reply, place
    )
    left join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
    left join entity_state as x
        on r.version > 0 and x.entity_type = any (array[r.type]) and x.entity_id = any (array[r.id])
    left join message as m on m.message_id = any (array[r.message_id])
    left join reply as q on q.message_id = any (array[r.message_id]);

    if 5 = any (verdicts) then
        raise exception 'what a run depends on changed at the same time' using errcode = 'serialization_failure';
    end if;
    return verdicts;
end
$$;
comment on function commit_verdicts is 'Why runs were not written, or that they were before.';
