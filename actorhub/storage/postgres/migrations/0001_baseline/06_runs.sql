-- Runs of durable messages: counted before they start, and what becomes of those that failed.

create type start_columns as (
    message_ids text,
    groups text,
    numbers text,
    epochs text,
    attempts text
);
comment on type start_columns is 'Runs that are about to start, a line of each text for each.';

-- A run is counted before it starts: a message that kills its runner would never be counted after it, so it would kill
-- one runner after the other. Counting says a number instead of adding one, so that a batch may be repeated.
--
-- Nothing runs early, whatever a runner's clock says: it is this database's clock that the due time is compared with.
create function start_runs(fence bigint, committer text, held held_shards, starts start_columns) returns smallint[]
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    wanted bigint[] := string_to_array(starts.message_ids, E'\n')::bigint[];
    started bigint[];
begin
    if fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    if owns_all(committer, held) then
        started := count_runs(starts.message_ids, starts.attempts);
    else
        with w as (
            update message as m
            set attempts = r.attempt::integer
            from rows from (
                string_to_table(starts.message_ids, E'\n'), string_to_table(starts.groups, E'\n'),
                string_to_table(starts.numbers, E'\n'), string_to_table(starts.epochs, E'\n'),
                string_to_table(starts.attempts, E'\n')
            ) as r (message_id, shard_group, number, epoch, attempt)
            join shard as s
                on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number::integer])
            where m.message_id = any (array[r.message_id::bigint])
                and coalesce(m.deliver_at, '-infinity') <= clock_timestamp()
                and s.epoch = r.epoch::bigint and s.owner_incarnation = committer
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
                when r.message_id::bigint = any (started) then 0
                when (s.epoch = r.epoch::bigint and s.owner_incarnation = committer) is not true then 3
                when m.message_id is not null then 2
                else 1
            end::smallint
            order by r.place
        )
        from rows from (
            string_to_table(starts.message_ids, E'\n'), string_to_table(starts.groups, E'\n'),
            string_to_table(starts.numbers, E'\n'), string_to_table(starts.epochs, E'\n')
        ) with ordinality as r (message_id, shard_group, number, epoch, place)
        left join shard as s
            on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number::integer])
        left join message as m on m.message_id = any (array[r.message_id::bigint])
    );
end
$$;
comment on function start_runs is
    'Counts runs before they start. Null: all may run. Else per row 0 run, 1 gone, 2 early, 3 fenced.';

create function count_runs(message_ids text, attempts text) returns bigint[]
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    counted bigint[];
begin
    with w as (
        update message as m
        set attempts = r.attempt::integer
        from rows from (string_to_table(message_ids, E'\n'), string_to_table(count_runs.attempts, E'\n'))
            as r (message_id, attempt)
        where m.message_id = any (array[r.message_id::bigint])
            and coalesce(m.deliver_at, '-infinity') <= clock_timestamp()
        returning m.message_id
    )
    select coalesce(array_agg(w.message_id), '{}') into counted from w;
    return counted;
end
$$;
comment on function count_runs is 'Counts runs of messages that are pending and due; returns which those are.';

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

create type failure_columns as (
    message_ids bigint[],
    groups text[],
    numbers integer[],
    epochs bigint[],
    pauses double precision[],
    attempts integer[],
    errors bytea[],
    error_types text[],
    error_texts text[],
    tracebacks text[]
);
comment on type failure_columns is 'Failed runs, an element of each array for each; no pause: it was the last run.';

-- Repeating is harmless: a run whose line ends the history already was written before, and so was a dead letter of this
-- epoch. The number of the run that failed is written with it: checkpoints set the count back, so the row may be
-- behind.
create function fail_runs(fence bigint, committer text, failures failure_columns) returns double precision[]
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    if fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    update message as m
    set deliver_at = clock_timestamp() + make_interval(secs => r.pause),
        attempts = r.attempt,
        history = longer_history(m.history, r.attempt, r.error_type, r.error_text, r.traceback)
    from unnest(
        failures.message_ids, failures.groups, failures.numbers, failures.epochs, failures.pauses, failures.attempts,
        failures.error_types, failures.error_texts, failures.tracebacks
    ) as r (message_id, shard_group, number, epoch, pause, attempt, error_type, error_text, traceback)
    join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
    where m.message_id = any (array[r.message_id]) and r.pause is not null
        and s.epoch = r.epoch and s.owner_incarnation = committer
        and not (
            m.deliver_at is not null and m.history is not null
            and (m.history -> -1 ->> 'attempt')::integer = r.attempt
        );

    with gone as (
        delete from message as m
        using unnest(
            failures.message_ids, failures.groups, failures.numbers, failures.epochs, failures.pauses,
            failures.attempts, failures.errors, failures.error_types, failures.error_texts, failures.tracebacks
        ) as r (message_id, shard_group, number, epoch, pause, attempt, error, error_type, error_text, traceback)
        join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
        where m.message_id = any (array[r.message_id]) and r.pause is null
            and s.epoch = r.epoch and s.owner_incarnation = committer
        returning m.*, r.epoch, r.attempt, r.error, r.error_type, r.error_text, r.traceback
    )
    insert into dead_letter (
        message_id, epoch, created_at, died_at, deliver_at, attempts, shard_number, shard_group, entity_type, entity_id,
        handler, body, headers, key, key_hash, history, error
    )
    select
        x.message_id, x.epoch, x.created_at, clock_timestamp(), x.deliver_at, x.attempt, x.shard_number, x.shard_group,
        x.entity_type, x.entity_id, x.handler, x.body, x.headers, x.key, x.key_hash,
        longer_history(x.history, x.attempt, x.error_type, x.error_text, x.traceback), x.error
    from gone as x;

    return (
        select array_agg(
            case
                when r.pause is null and d.epoch = r.epoch then 0
                when (s.epoch = r.epoch and s.owner_incarnation = committer) is not true then -1
                when r.pause is not null and m.message_id is not null
                    then coalesce(extract(epoch from m.deliver_at)::double precision, 0)
                else -2
            end
            order by r.place
        )
        from unnest(failures.message_ids, failures.groups, failures.numbers, failures.epochs, failures.pauses)
            with ordinality as r (message_id, shard_group, number, epoch, pause, place)
        left join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
        left join message as m on m.message_id = any (array[r.message_id])
        left join dead_letter as d on d.message_id = any (array[r.message_id])
    );
end
$$;
comment on function fail_runs is
    'Per row when the next run is due (Unix time), 0 for a dead letter, -1 fenced, -2 no longer pending.';
