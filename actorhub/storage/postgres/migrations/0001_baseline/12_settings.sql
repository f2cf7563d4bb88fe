-- Settings that functions have in common. `create or replace function` forgets them: a migration that makes or replaces
-- functions calls pin_functions again at its end.

-- Each function finds the tables of its own schema, whatever the search path of the caller: commit_runs and
-- write_checkpoints are called in transactions of handlers, whose search path is the role's own.
--
-- A function that plans once may only look rows up by index, since its plan must hold for any size of the tables.
create function pin_functions() returns void
language plpgsql as $$
declare
    pinned record;
begin
    for pinned in
        select p.oid::regprocedure as signature, p.proconfig @> '{plan_cache_mode=force_generic_plan}' as plans_once
        from pg_proc as p
        join pg_language as l on l.oid = p.prolang
        where p.pronamespace = quote_ident(current_schema())::regnamespace and l.lanname = 'plpgsql'
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
comment on function pin_functions is 'Gives every function of the schema the settings that functions have in common.';

select pin_functions();
