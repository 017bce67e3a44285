-- For wrk: posts the file that BODY names as what TYPE says, and prints JSON at the end.
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = os.getenv("TYPE")

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\n{"requests": %d, "seconds": %f, "failed": %d, "p50_s": %f, "p99_s": %f}\n',
    summary.requests, summary.duration / 1e6, failed, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
