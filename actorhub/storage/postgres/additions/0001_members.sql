-- Who may call the functions of the schema, and what runners and clients that do not own it may do with its objects.

-- Members are the roles, besides the owner, that may write to the table shard: runners and clients have to. Which they
-- are stands in the grants of that table, so what an addition makes is theirs as soon as it is there, also for processes
-- of an earlier release, which run or start beside this one.
--
-- Everybody may call a new function unless that is revoked, and a function runs with the rights of its caller, whose
-- search path it replaces by that of the schema. Whoever may write to all tables by pg_write_all_data may go on calling
-- functions, too.
create function grant_to_members(variadic names text[]) returns void
language plpgsql as $$
declare
    statement text;
begin
    for statement in
        with member as (
            select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end as name
            from pg_class as c
            cross join aclexplode(c.relacl) as a
            where c.oid = 'shard'::regclass and a.privilege_type = 'INSERT' and a.grantee <> c.relowner
        ),
        made as (
            select
                1 as step, 'select, insert, update, delete' as privileges, c.oid::regclass::text as object
            from pg_class as c
            where c.relnamespace = quote_ident(current_schema())::regnamespace and c.relname = any (names)
                and c.relkind in ('r', 'p', 'v')
            union all
            select 2, 'execute', 'function ' || p.oid::regprocedure
            from pg_proc as p
            where p.pronamespace = quote_ident(current_schema())::regnamespace and p.proname = any (names)
        )
        select s.text
        from (
            select made.step, made.object, 1 as place, format('revoke all on %s from public', made.object) as text
            from made
            where made.step = 2
            union all
            select made.step, made.object, 2, format('grant %s on %s to %s', made.privileges, made.object, member.name)
            from made
            cross join (
                select member.name, 1 as first_step from member
                union all
                select 'pg_write_all_data', 2
            ) as member
            where made.step >= member.first_step
        ) as s
        order by s.step, s.object, s.place
    loop
        execute statement;
    end loop;
end
$$;
comment on function grant_to_members is
    'Lets members use tables, views and functions of the schema, by name, and nobody else call those functions.';

select pin_functions('grant_to_members');
select grant_to_members(
    'addition', 'grant_to_members', 'pin_functions',
    'runner_slot', 'lease_machine_id',
    'take_shards', 'release_shards', 'hold_ownership', 'owns_all', 'hold_shards',
    'commit_states',
    'due_time', 'store_messages', 'store_one_by_one',
    'start_runs', 'count_runs', 'longer_history', 'fail_runs',
    'commit_runs', 'commit_one_by_one', 'clashing_runs', 'store_outbox', 'commit_verdicts',
    'cancel_message', 'retry_messages',
    'write_checkpoints', 'remove_orphans',
    'lead_singleton', 'record_singleton', 'keep_schedule', 'remove_schedules', 'remove_abandoned'
);
