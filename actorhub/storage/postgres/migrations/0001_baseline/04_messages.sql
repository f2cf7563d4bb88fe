-- Durable messages: pending ones, replies, dead letters and idempotency keys.
--
-- No claims: a claim that times out is either too short for a slow handler or too long for a dead runner. Only the
-- owner of a shard works on the shard's messages, so ownership is the claim.
--
-- No NOTIFY: at each commit it takes one lock for the whole database, so it would serialise commits. Owners are told
-- over their links, and scan the store now and then for what they missed.
--
-- No state column: what is settled leaves this table, and a row of another table says how it ended. An update of a
-- state would leave a dead version in every index, and the indexes of what waits would carry what has ended.

-- Addresses are compared byte by byte, so that every database and Python agree on what comes after what. Counting an
-- attempt changes no indexed column: the new version stays on its page, for which the fill factor leaves room.
create table message (
    message_id bigint primary key,
    deliver_at timestamptz,
    created_at timestamptz not null default clock_timestamp(),
    attempts integer not null,
    shard_number integer not null,
    shard_group text collate "C" not null,
    entity_type text collate "C" not null,
    entity_id text collate "C" not null,
    handler text not null,
    body bytea not null,
    headers text,
    key text,
    key_hash bytea,
    history jsonb
) with (
    fillfactor = 50,
    vacuum_truncate = false,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.2,
    autovacuum_analyze_scale_factor = 0.2,
    autovacuum_vacuum_cost_delay = 0
);
comment on table message is 'Durable messages that are not settled yet.';
comment on column message.deliver_at is 'Not before; null: at once.';
comment on column message.attempts is 'Runs that were counted, each before it started.';
comment on column message.history is 'The last failed runs, oldest first.';
create index message_in_line on message (shard_number, shard_group, entity_type, entity_id, message_id)
where deliver_at is null;
create index message_by_due_time on message (shard_number, shard_group, deliver_at, message_id)
where deliver_at is not null;

create table reply (
    message_id bigint primary key,
    epoch bigint not null,
    created_at timestamptz not null,
    finished_at timestamptz not null,
    expires_at timestamptz not null,
    attempts integer not null,
    shard_number integer not null,
    outcome smallint not null check (outcome between 0 and 2),
    shard_group text collate "C" not null,
    entity_type text collate "C" not null,
    entity_id text collate "C" not null,
    handler text not null,
    key text,
    key_hash bytea,
    body bytea not null
) with (
    vacuum_truncate = false,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.2,
    autovacuum_vacuum_cost_delay = 0
);
comment on table reply is 'How settled messages ended, kept for their retention.';
comment on column reply.outcome is '0 value, 1 error, 2 cancelled.';
create index reply_by_expiry on reply (expires_at);

create table dead_letter (
    message_id bigint primary key,
    epoch bigint not null,
    created_at timestamptz not null,
    died_at timestamptz not null,
    deliver_at timestamptz,
    attempts integer not null,
    shard_number integer not null,
    shard_group text collate "C" not null,
    entity_type text collate "C" not null,
    entity_id text collate "C" not null,
    handler text not null,
    body bytea not null,
    headers text,
    key text,
    key_hash bytea,
    history jsonb,
    error bytea not null
);
comment on table dead_letter is 'Messages whose last attempt failed.';

create table message_key (
    key_hash bytea primary key,
    message_id bigint not null,
    payload_hash bytea not null
) with (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
comment on table message_key is 'Which message has an idempotency key; goes with its reply or dead letter.';

create view messages as
select
    m.message_id,
    case when m.deliver_at > now() then 'scheduled' else 'pending' end as state,
    m.shard_group || ':' || m.shard_number as shard,
    m.entity_type, m.entity_id, m.handler, m.key, m.attempts, m.created_at, m.deliver_at,
    null::timestamptz as finished_at,
    null::timestamptz as expires_at
from message as m
union all
select
    q.message_id,
    case q.outcome when 0 then 'done' when 1 then 'failed' else 'cancelled' end,
    q.shard_group || ':' || q.shard_number,
    q.entity_type, q.entity_id, q.handler, q.key, q.attempts, q.created_at, null, q.finished_at, q.expires_at
from reply as q
union all
select
    d.message_id, 'dead', d.shard_group || ':' || d.shard_number,
    d.entity_type, d.entity_id, d.handler, d.key, d.attempts, d.created_at, d.deliver_at, d.died_at, null
from dead_letter as d;
comment on view messages is 'Durable messages of every state, for people; message_id grows with the time of sending.';
comment on column messages.state is 'pending, scheduled, done, failed, cancelled or dead.';
comment on column messages.expires_at is 'When a settled message, and its key, are forgotten.';

create view dead_letters as
select
    d.message_id,
    d.shard_group || ':' || d.shard_number as shard,
    d.entity_type, d.entity_id, d.handler, d.key, d.attempts, d.created_at, d.died_at,
    d.history -> -1 ->> 'error_type' as error_type,
    d.history -> -1 ->> 'error_text' as error_text,
    d.history -> -1 ->> 'traceback' as traceback,
    d.history,
    octet_length(d.body) as payload_bytes
from dead_letter as d;
comment on view dead_letters is 'Messages whose last attempt failed, with the last error, for people.';
comment on column dead_letters.history is
    'The last failed runs, oldest first: attempt, at (Unix time), error_type, error_text, traceback.';

create view schedules as
select
    m.message_id,
    m.shard_group || ':' || m.shard_number as shard,
    m.entity_type, m.entity_id, m.handler, m.key, m.attempts, m.created_at, m.deliver_at,
    m.deliver_at - now() as due_in
from message as m
where m.deliver_at > now();
comment on view schedules is 'Durable messages that are not due yet, for people.';
comment on column schedules.attempts is 'More than 0: it failed before and waits for its next attempt.';
