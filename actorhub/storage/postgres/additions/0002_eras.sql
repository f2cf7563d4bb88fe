-- Which stretch of its life the database is in, and whether it is a copy.

-- An era is one run of the server that has the database. A process that meets another era than the one that it knows has
-- to forget what it believed, because the data may be older than it remembers: a standby that lagged was promoted, a
-- backup was put back, or the URL leads to a clone by now. A plain restart cannot be told from these by what the server
-- says of itself (a copy of the files has the same system identifier, and the same timeline if it was shut down cleanly),
-- and costs every lock session anyway. So each run of the server counts, and what was lost is a question of its own.
--
-- That question is answered by the rows, which are part of the data. A process knows the eras that it was in, and how far
-- the log had come when its last commit was acknowledged. The latest of its eras that has a row is where its past and
-- the database's present part, and the next row says how far the data reached when that one began.

create table era (
    number bigint primary key,
    token text not null unique,
    cluster text not null,
    system_identifier bigint not null,
    database_oid oid not null,
    table_oid oid not null,
    timeline integer not null,
    server_started_at timestamptz not null,
    recovered_to bigint,
    begun_at timestamptz not null default clock_timestamp()
);
comment on table era is 'The runs of the server in which the cluster worked; the one with the highest number is present.';
comment on column era.token is 'Later ones are greater, also where the numbers begin again because rows were lost.';
comment on column era.cluster is 'Made with the first row; a copy that is adopted gets another one.';
comment on column era.table_oid is 'Of this table; with system and database it says where the row was written.';
comment on column era.recovered_to is 'How far the log reached when the server started; null: it is not known.';

create view eras as
select
    e.number, e.token, e.cluster, e.timeline, e.server_started_at, '0/0'::pg_lsn + e.recovered_to as recovered_to,
    e.begun_at
from era as e
order by e.number;
comment on view eras is 'Runs of the server, for people.';

-- A role may be kept from what the server says of itself, and some managed databases do not have it. Then one thing less
-- tells a copy from its original.
create function present_server() returns era
language plpgsql as $$
declare
    found era;
    checkpoint pg_lsn;
begin
    found.database_oid := (select d.oid from pg_database as d where d.datname = current_database());
    found.table_oid := 'era'::regclass::oid;
    found.server_started_at := pg_postmaster_start_time();
    found.system_identifier := 0;
    found.timeline := 0;
    begin
        found.system_identifier := (select c.system_identifier from pg_control_system() as c);
        checkpoint := (select c.checkpoint_lsn from pg_control_checkpoint() as c);
        found.timeline := ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer;
        -- After a recovery of any kind it stays at the end of what was replayed. After a clean shutdown nothing was:
        -- then all that there is comes before the checkpoint at the shutdown, which stays the last one for some minutes.
        found.recovered_to := coalesce(pg_last_wal_replay_lsn(), checkpoint) - '0/0'::pg_lsn;
    exception
        when insufficient_privilege or undefined_function or feature_not_supported
            or object_not_in_prerequisite_state then null;
    end;
    return found;
end
$$;
comment on function present_server is 'What the present server and database would write into a row of their own.';

-- A copy of the rows is one that was not written where it is read: dump and restore change the table's oid, and with it
-- the database's or the server's. A copy of the files keeps all three and is an era of its own.
create function enter_era(adopts boolean, out present era, out is_copy boolean, out is_adopted boolean)
language plpgsql as $$
declare
    here era := present_server();
begin
    -- A dump that is being restored gets its keys last. A row that is written before the dump's would fail it.
    if not exists (select from pg_constraint as c where c.conrelid = 'era'::regclass and c.contype = 'p') then
        raise exception 'the tables have no keys yet: a restore seems to be under way' using errcode = '57P03';
    end if;

    is_adopted := false;
    select e.* into present from era as e order by e.number desc limit 1;
    is_copy := found and (present.system_identifier, present.database_oid, present.table_oid)
        is distinct from (here.system_identifier, here.database_oid, here.table_oid);
    if found and not is_copy and present.server_started_at = here.server_started_at then
        return;
    end if;

    perform pg_advisory_xact_lock(hashtextextended(current_schema() || '/era', 0));
    select e.* into present from era as e order by e.number desc limit 1;
    is_copy := found and (present.system_identifier, present.database_oid, present.table_oid)
        is distinct from (here.system_identifier, here.database_oid, here.table_oid);
    if is_copy and not adopts or found and not is_copy and present.server_started_at = here.server_started_at then
        return;
    end if;

    here.number := coalesce(present.number, 0) + 1;
    here.token := to_char(
        greatest(
            (extract(epoch from clock_timestamp()) * 1000)::bigint, split_part(present.token, '-', 1)::bigint + 1
        ),
        'FM0000000000000'
    )
        || '-' || left(replace(gen_random_uuid()::text, '-', ''), 8);
    here.cluster := case when found and not is_copy then present.cluster else gen_random_uuid()::text end;
    here.begun_at := clock_timestamp();
    if is_copy then
        -- These are the original's runners, which may be alive and well, and own nothing here.
        delete from runner;
        update shard set owner_incarnation = null, owner_address = null, owner_fence = null
        where owner_incarnation is not null;
        -- How far the original had come says nothing here.
        here.recovered_to := null;
    end if;
    insert into era select here.*;
    delete from era as e where e.number <= here.number - 1000;
    present := here;
    is_adopted := is_copy;
    is_copy := false;
end
$$;
comment on function enter_era is
    'The present era, begun if it has no row yet; of a copy that nobody adopts the original''s last one.';

create function check_era(started_at bigint, table_oid oid, present text) returns void
language plpgsql as $$
begin
    if (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint <> started_at
        or 'era'::regclass::oid <> table_oid
        or (select e.token from era as e order by e.number desc limit 1) is distinct from present
    then
        raise exception 'the server was started again, or another one took its place' using errcode = '57AER';
    end if;
end
$$;
comment on function check_era is
    'Fails unless this server, started at that time (in microseconds), has that table and is in that era.';

-- Without the table's settings, so that it costs nothing: it becomes a part of the statement. Where a server does not
-- tell, nothing is known of what was lost.
do $$
declare
    position text := '(pg_current_wal_insert_lsn() - ''0/0''::pg_lsn)::bigint';
begin
    begin
        execute 'select ' || position;
    exception
        when others then position := 'null::bigint';
    end;
    execute format('create function log_position() returns bigint language sql volatile as %L', 'select ' || position);
end
$$;
comment on function log_position is 'How far the server''s log has come.';

select pin_functions('present_server', 'enter_era', 'check_era');
select grant_to_members('era', 'eras', 'present_server', 'enter_era', 'check_era', 'log_position');
