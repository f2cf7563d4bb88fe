// Effect's cluster doing what the durable benchmarks measure, for `benchmarks/_effect.py`.
//
//     node cluster.mjs '{"role": "single" | "runner" | "client", "path": … | "host": …, "database": …, "port": …}'
//
// It prints one JSON line when it is ready, then answers each JSON line on standard input with one JSON line.
// Settings are Effect's defaults, but for what would only slow it down here: local messages are not serialised a
// second time to simulate a remote runner, and statements of several fibers share connections.
import { NodeClusterSocket } from "@effect/platform-node"
import { PgClient } from "@effect/sql-pg"
import { DateTime, Effect, Layer, Logger, Option, Redacted, Schema } from "effect"
import { ClusterSchema, DeliverAt, Entity, RunnerAddress } from "effect/cluster"
import { Rpc } from "effect/rpc"
import * as readline from "node:readline"

const ENTITIES = 256
const options = JSON.parse(process.argv[2])

const Payload = Schema.Struct({
  order_id: Schema.String,
  sku: Schema.String,
  quantity: Schema.Number,
  note: Schema.String
})
const PAYLOAD = { order_id: "o-1", sku: "tea", quantity: 2, note: "x".repeat(82) }

class Due extends Schema.Class("Due")({ at: Schema.Number }) {
  [DeliverAt.symbol]() {
    return DateTime.makeUnsafe(this.at)
  }
}

const Echo = Entity.make("Echo", [
  Rpc.make("Ask", { payload: Payload, success: Payload }).annotate(ClusterSchema.Persisted, true),
  Rpc.make("Tell", { payload: Payload }).annotate(ClusterSchema.Persisted, true),
  Rpc.make("Remind", { payload: Due }).annotate(ClusterSchema.Persisted, true)
])

const seen = { tells: 0, late: [] }
const EchoLive = Echo.toLayer(
  Echo.of({
    Ask: ({ payload }) => Effect.succeed(payload),
    Tell: () => Effect.sync(() => { seen.tells += 1 }),
    Remind: ({ payload }) => Effect.sync(() => { seen.late.push(Date.now() - payload.at) })
  }),
  { maxIdleTime: "1 hour" }
)

const isClient = options.role === "client"
const Pg = PgClient.layer({
  ...(options.path ? { path: options.path } : { host: options.host, port: options.pg_port }),
  username: options.user,
  database: options.database,
  ...(process.env.PEER_PASSWORD ? { password: Redacted.make(process.env.PEER_PASSWORD) } : {}),
  multiplex: true
})
const address = RunnerAddress.make("127.0.0.1", options.port)
const Cluster = NodeClusterSocket.layer({
  storage: "sql",
  clientOnly: isClient,
  shardingConfig: {
    runnerAddress: isClient ? Option.none() : Option.some(address),
    simulateRemoteSerialization: false
  }
})
const Live = (isClient ? Layer.empty : EchoLive).pipe(Layer.provideMerge(Cluster), Layer.provide(Pg))

const say = (value) => process.stdout.write(JSON.stringify(value) + "\n")

const closedLoop = (call, count, inFlight) =>
  Effect.gen(function*() {
    const taken = []
    const each = Math.max(1, Math.floor(count / inFlight))
    const caller = (number) =>
      Effect.gen(function*() {
        for (let step = 0; step < each; step++) {
          const begin = performance.now()
          yield* call(number * 7 + step)
          taken.push(performance.now() - begin)
        }
      })
    const begin = performance.now()
    yield* Effect.forEach(Array.from({ length: inFlight }, (_, number) => number), caller, {
      concurrency: "unbounded",
      discard: true
    })
    const seconds = (performance.now() - begin) / 1000
    return { count: taken.length, per_s: taken.length / seconds, ...percentiles(taken, 1000) }
  })

const percentiles = (values, scale) => {
  const sorted = values.toSorted((a, b) => a - b)
  const at = (share) => Math.round(sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] * scale)
  return { p50_us: at(0.5), p99_us: at(0.99) }
}

const until = (done, seconds) =>
  Effect.gen(function*() {
    const end = performance.now() + seconds * 1000
    while (!done() && performance.now() < end) yield* Effect.sleep(5)
  })

const entity = (client, number) => client("e" + number % ENTITIES)

const commands = (client) => {
  const of = (number) => entity(client, number)
  return {
    ask: ({ count, in_flight }) => closedLoop((number) => of(number).Ask(PAYLOAD), count, in_flight),
    // Accepted means stored: `discard` waits for that, not for the handler, which runs meanwhile.
    tell: ({ count, in_flight, seconds }) =>
      Effect.gen(function*() {
        const before = seen.tells
        const begin = performance.now()
        const found = yield* closedLoop((number) => of(number).Tell(PAYLOAD, { discard: true }), count, in_flight)
        yield* until(() => seen.tells - before >= found.count, seconds)
        const processed = seen.tells - before
        return { ...found, processed, processed_per_s: processed / (performance.now() - begin) * 1000 }
      }),
    // `over` milliseconds: the times at which the messages are due are spread over that long.
    remind: ({ count, ahead, over, seconds }) =>
      Effect.gen(function*() {
        seen.late = []
        const first = Math.ceil((Date.now() + ahead) / 1000) * 1000
        const numbers = Array.from({ length: count }, (_, number) => number)
        yield* Effect.forEach(
          numbers,
          (number) => of(number).Remind(new Due({ at: first + Math.floor(number * over / count) }), { discard: true }),
          { concurrency: 256, discard: true }
        )
        const stored_ahead_ms = first - Date.now()
        yield* until(() => seen.late.length >= count, seconds + (first - Date.now() + over) / 1000)
        return { stored_ahead_ms, late_ms: seen.late }
      })
  }
}

const main = Effect.gen(function*() {
  const client = yield* Echo.client
  const known = commands(client)
  // Also waits until the shards have an owner: a client that asks earlier can wait for ever.
  const numbers = Array.from({ length: ENTITIES }, (_, number) => number)
  yield* Effect.forEach(numbers, (number) => entity(client, number).Ask(PAYLOAD), { concurrency: 32, discard: true })
  say({ ready: true, node: process.version })
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]()
  while (true) {
    const { done, value } = yield* Effect.promise(() => lines.next())
    if (done) return
    const command = JSON.parse(value)
    say(yield* known[command.do](command))
  }
})

// Standard output is for answers.
const Log = Logger.layer([Logger.withConsoleError(Logger.formatLogFmt)])

Effect.runPromise(main.pipe(Effect.provide(Live), Effect.provide(Log), Effect.scoped)).then(
  () => process.exit(0),
  (error) => {
    console.error(error)
    process.exit(1)
  }
)
