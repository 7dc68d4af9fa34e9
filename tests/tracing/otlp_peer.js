// OpenTelemetry's own OTLP for JavaScript (protobufjs), so that ours is not only read by what wrote it.
//
//   node otlp_peer.js NODE_MODULES read            an export request on stdin; gives it as JSON
//   node otlp_peer.js NODE_MODULES read-response   the answer to one, the same
//   node otlp_peer.js NODE_MODULES write           spans as JSON on stdin; gives an export request
const fs = require("fs");
const path = require("path");

const [modules, verb] = process.argv.slice(2);
const transformer = path.join(modules, "@opentelemetry", "otlp-transformer");
const input = fs.readFileSync(0);

function read() {
  const { opentelemetry } = require(path.join(transformer, "build", "src", "generated", "root.js"));
  const { ExportTraceServiceRequest } = opentelemetry.proto.collector.trace.v1;
  const request = ExportTraceServiceRequest.decode(input);
  const problem = ExportTraceServiceRequest.verify(request);
  if (problem) throw new Error(problem);
  return JSON.stringify(ExportTraceServiceRequest.toObject(request, { longs: String, bytes: String }));
}

function readResponse() {
  return JSON.stringify(require(transformer).ProtobufTraceSerializer.deserializeResponse(input));
}

function write() {
  const time = (ns) => [Number(BigInt(ns) / 1000000000n), Number(BigInt(ns) % 1000000000n)];
  const spans = JSON.parse(input).map((span) => ({
    ...span,
    parentSpanId: span.parentSpanId ?? undefined,
    spanContext: () => ({ traceId: span.traceId, spanId: span.spanId, traceFlags: 1 }),
    startTime: time(span.start),
    endTime: time(span.end),
    events: span.events.map((event) => ({ ...event, time: time(event.time) })),
    resource: { attributes: { "service.name": span.service } },
    instrumentationLibrary: { name: "javascript", version: "1" },
    droppedAttributesCount: 0,
    droppedEventsCount: 0,
    droppedLinksCount: 0,
  }));
  return Buffer.from(require(transformer).ProtobufTraceSerializer.serializeRequest(spans));
}

process.stdout.write({ read, "read-response": readResponse, write }[verb]());
