-- What people do to durable messages: cancel them, and retry those that failed.

-- A message moves between tables: from pending to settled, or to dead letters and back. The tables are searched one
-- after the other, so a message that moves to one that was searched already is missed; the second round finds it.
create function cancel_message(
    fence bigint, committer text, cancelled_id bigint, its_group text, its_number integer, its_epoch bigint,
    retention double precision
) returns smallint
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    if committer is null then
        perform hold_shards(array[its_group], array[its_number]);
    elsif not hold_ownership(fence, committer, its_group, its_number, its_epoch) then
        return 3;
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

create function retry_messages(message_ids bigint[]) returns setof message
language plpgsql set plan_cache_mode = force_generic_plan as $$
begin
    -- In order, like everybody who locks several messages: else two calls for the same ones could deadlock.
    perform 1 from message as m where m.message_id = any (message_ids) order by m.message_id for update;

    return query
    update message as m set attempts = 0, deliver_at = null where m.message_id = any (message_ids) returning m.*;

    return query
    with gone as (
        delete from dead_letter as d where d.message_id = any (message_ids) returning d.*
    )
    insert into message as m (
        message_id, created_at, attempts, shard_number, shard_group, entity_type, entity_id, handler, body, headers,
        key, key_hash, history
    )
    select
        x.message_id, x.created_at, 0, x.shard_number, x.shard_group, x.entity_type, x.entity_id, x.handler, x.body,
        x.headers, x.key, x.key_hash, x.history
    from gone as x
    order by x.message_id
    returning m.*;
end
$$;
comment on function retry_messages is
    'Makes dead letters pending again, and pending messages due at once, with no attempts counted.';
