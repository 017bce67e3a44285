-- Prolongs the lease, or with 0 ms gives it up. ARGV: token, lease in ms, what the writer
-- has been at for too long, or "". Returns 1, or 0: fenced.
local token, lease_ms, stalled = unpack(ARGV)
if not held(token) then
  return 0
end
redis.call('DEL', lease)  -- the first write
if lease_ms == '0' then
  redis.call('HDEL', fence, 'token', 'owner', 'seen_ms', 'stalled')
else
  redis.call('SET', lease, token, 'PX', lease_ms)
  alive()
  if stalled == '' then
    redis.call('HDEL', fence, 'stalled')
  else
    redis.call('HSET', fence, 'stalled', stalled)
  end
end
return 1
