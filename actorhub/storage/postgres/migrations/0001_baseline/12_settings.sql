-- Settings that functions have in common.

-- Each function finds the tables of its own schema, whatever the search path of the caller: commit_runs and
-- write_checkpoints are called in transactions of handlers, whose search path is the role's own.
--
-- Functions on the hot path plan once (`set plan_cache_mode = force_generic_plan` beside their language): planning
-- costs more than running, and what a table holds when a plan is made says nothing about later. Such a plan must hold
-- for any size of the tables, so it may look up rows by index and nothing else. Three rules keep their statements to
-- that:
--
-- - For the comparison = any (array[x]) nothing but a look-up per row is possible. After = x, a table that was empty at
--   the last analyze would be read as a whole through its index, with everything that was deleted since.
-- - No exists() inside an or: it might read a whole table into a hash.
-- - The settings below.
--
-- `create or replace function` forgets settings: a migration that makes or replaces functions calls this at its end, with
-- their names. Only those are changed: the schema may have functions of others, whose search path is not ours to set.
create function pin_functions(variadic names text[]) returns void
language plpgsql as $$
declare
    pinned record;
begin
    for pinned in
        select p.oid::regprocedure as signature, p.proconfig @> '{plan_cache_mode=force_generic_plan}' as plans_once
        from pg_proc as p
        join pg_language as l on l.oid = p.prolang
        where p.pronamespace = quote_ident(current_schema())::regnamespace and l.lanname = 'plpgsql'
            and p.proname = any (names)
    loop
        execute format('alter function %s set search_path from current', pinned.signature);
        if pinned.plans_once then
            execute format('alter function %s set enable_seqscan = off', pinned.signature);
            execute format('alter function %s set enable_bitmapscan = off', pinned.signature);
            execute format('alter function %s set enable_hashjoin = off', pinned.signature);
            execute format('alter function %s set enable_mergejoin = off', pinned.signature);
        end if;
    end loop;
end
$$;
comment on function pin_functions is 'Gives functions of the schema, by name, the settings that they have in common.';

select pin_functions(
    'runner_slot', 'lease_machine_id',
    'take_shards', 'release_shards', 'hold_ownership', 'owns_all', 'hold_shards',
    'commit_states',
    'store_messages', 'store_one_by_one',
    'start_runs', 'count_runs', 'fail_runs',
    'commit_runs', 'commit_one_by_one', 'clashing_runs', 'store_outbox', 'commit_verdicts',
    'cancel_message', 'retry_messages',
    'write_checkpoints', 'remove_orphans',
    'lead_singleton', 'record_singleton', 'keep_schedule', 'remove_schedules', 'remove_abandoned',
    'pin_functions'
);
