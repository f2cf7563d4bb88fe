-- The key-value store.

-- Keys are compared byte by byte, so that a prefix is a range of the primary key.
create table key_value (
    key text collate "C" primary key,
    expires_at timestamptz,
    updated_at timestamptz not null default clock_timestamp(),
    data bytea not null
) with (
    fillfactor = 70,
    vacuum_truncate = false,
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.2,
    autovacuum_vacuum_cost_delay = 0
);
comment on table key_value is 'The values of the key-value store, in msgpack.';
comment on column key_value.expires_at is 'When the value is gone; null: it stays until it is deleted.';
create index key_value_by_expiry on key_value (expires_at) where expires_at is not null;
