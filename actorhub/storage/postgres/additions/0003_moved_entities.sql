-- Entities whose shard is another one than it was: a release of a program gave their type another shard_group or
-- shard_key. While runners of both releases run, each has the entity in another shard.

-- What is stored of an entity goes from one shard to the other in one step: its state and its pending messages, with
-- their ids, keys, due times and counts.
--
-- The caller owns one of the two shards, and says who owns the source, as far as it knows: that one has agreed to give
-- the entity away, and another owner has not. Null: nobody who is alive. Both rows are held, so neither changes its
-- owner meanwhile. Another owner of the source may be in the middle of a commit, so its fence is waited for, as in a
-- takeover. No deadlock: whoever waits here holds rows of shards, which commits do not lock, and no fence.
--
-- From now on the epoch is one of the target, and starts below all of those: epochs of two shards say nothing about
-- each other.
create function move_entity(
    committer text, source_owner text, its_type text, its_id text, source_group text, source_number integer,
    target_group text, target_number integer
) returns integer
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    former text;
    other_fence bigint;
    due_at_once bigint;
    due_later bigint;
begin
    perform hold_shards(array[source_group, target_group], array[source_number, target_number]);
    select s.owner_incarnation, s.owner_fence into former, other_fence
    from shard as s
    where s.shard_group = source_group and s.number = source_number;

    if source_owner is null and exists (
        select from runner as r
        where r.incarnation = former and r.heartbeat_at > clock_timestamp() - interval '10 seconds'
    ) or source_owner <> coalesce(former, '') or former is distinct from committer and not exists (
        select from shard as s
        where s.shard_group = target_group and s.number = target_number and s.owner_incarnation = committer
    ) then
        return -1;
    end if;
    if former <> committer and other_fence is not null then
        perform pg_advisory_xact_lock(other_fence);
    end if;

    update entity_state as x
    set shard_group = target_group, shard_number = target_number, epoch = 0
    where x.entity_type = its_type and x.entity_id = its_id
        and x.shard_group = source_group and x.shard_number = source_number;

    update message as m
    set shard_group = target_group, shard_number = target_number
    where m.shard_number = source_number and m.shard_group = source_group and m.deliver_at is null
        and m.entity_type = its_type and m.entity_id = its_id;
    get diagnostics due_at_once = row_count;

    update message as m
    set shard_group = target_group, shard_number = target_number
    where m.shard_number = source_number and m.shard_group = source_group and m.deliver_at is not null
        and m.entity_type = its_type and m.entity_id = its_id;
    get diagnostics due_later = row_count;
    return due_at_once + due_later;
end
$$;
comment on function move_entity is
    'Moves what is stored of an entity to another shard; how many messages; -1: the shards have other owners.';

-- The three functions below replace those of the baseline, in one thing: epochs of different shards are not compared. A
-- state or reply that was committed in another shard has no later epoch than this commit, nor is it from a twin of it,
-- whatever the numbers are. The release before calls them by these names. Its runners refused such commits, or, worse,
-- took another runner's commit for their own.

create or replace function commit_states(fence bigint, committer text, states state_columns) returns smallint[]
language plpgsql set plan_cache_mode = force_generic_plan as $$
declare
    written bigint := 0;
    updated bigint;
begin
    if fence is not null then
        perform pg_advisory_xact_lock_shared(fence);
    end if;

    if 1 = any (states.versions) then
        insert into entity_state (
            entity_type, entity_id, version, epoch, shard_group, shard_number, updated_at, data
        )
        select r.type, r.id, r.version, r.epoch, r.shard_group, r.number, now(), r.body
        from unnest(
            states.groups, states.numbers, states.epochs, states.types, states.ids, states.versions, states.bodies
        ) as r (shard_group, number, epoch, type, id, version, body)
        join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
        where r.version = 1 and s.epoch = r.epoch and s.owner_incarnation = committer
        on conflict do nothing;
        get diagnostics written = row_count;
    end if;

    if written < cardinality(states.versions) then
        update entity_state as x
        set version = r.version, epoch = r.epoch, shard_group = r.shard_group, shard_number = r.number,
            updated_at = now(), data = r.body
        from unnest(
            states.groups, states.numbers, states.epochs, states.types, states.ids, states.versions, states.bodies
        ) as r (shard_group, number, epoch, type, id, version, body)
        join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
        where x.entity_type = any (array[r.type]) and x.entity_id = any (array[r.id]) and x.version = r.version - 1
            and s.epoch = r.epoch and s.owner_incarnation = committer
            and (x.epoch <= r.epoch or x.shard_number <> r.number or x.shard_group <> r.shard_group);
        get diagnostics updated = row_count;
        written := written + updated;
    end if;

    if written = cardinality(states.versions) then
        return null;
    end if;

    return (
        select array_agg(
            case
                when x.version = r.version and x.epoch = r.epoch and x.data = r.body
                    and x.shard_number = r.number and x.shard_group = r.shard_group then 0
                when s.epoch = r.epoch and s.owner_incarnation = committer then 2
                else 1
            end::smallint
            order by r.place
        )
        from unnest(
            states.groups, states.numbers, states.epochs, states.types, states.ids, states.versions, states.bodies
        ) with ordinality as r (shard_group, number, epoch, type, id, version, body, place)
        left join shard as s on s.shard_group = any (array[r.shard_group]) and s.number = any (array[r.number])
        left join entity_state as x on x.entity_type = any (array[r.type]) and x.entity_id = any (array[r.id])
    );
end
$$;

create or replace function commit_one_by_one(committer text, runs run_columns, tellers integer[], told message_columns)
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
                    select x.version = r.version - 1
                        and (x.epoch <= r.epoch or x.shard_number <> r.number or x.shard_group <> r.shard_group)
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
            and x.version = r.version - 1
            and (x.epoch <= r.epoch or x.shard_number <> r.number or x.shard_group <> r.shard_group);
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

create or replace function commit_verdicts(
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
                when q.epoch = r.epoch and q.outcome = r.outcome and q.body = r.reply
                    and q.shard_number = r.number and q.shard_group = r.shard_group then 6
                when r.message_id is null and r.version > 0
                    and x.version = r.version and x.epoch = r.epoch and x.data = r.body
                    and x.shard_number = r.number and x.shard_group = r.shard_group then 6
                when r.message_id is null and coalesce(r.version, 0) = 0 and r.place = any (told_before) then 6
                when (s.epoch = r.epoch and s.owner_incarnation = committer) is not true then 1
                when r.message_id is not null and m.message_id is null then 3
                when r.version > 0 and (
                    coalesce(x.version, 0) <> r.version - 1
                    or x.epoch > r.epoch and x.shard_number = r.number and x.shard_group = r.shard_group
                ) then 2
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

select pin_functions('move_entity', 'commit_states', 'commit_one_by_one', 'commit_verdicts');
select grant_to_members('move_entity');
