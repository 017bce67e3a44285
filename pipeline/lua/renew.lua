-- Prolongs the lease, or with 0 ms ends it and gives the place up. ARGV: token, lease in ms. Returns 1, or 0: fenced.
local token, lease_ms = unpack(ARGV)
if not held(token) then
  return 0
end
redis.call('DEL', lease)  -- the first write
if lease_ms == '0' then
  redis.call('HDEL', fence, 'token', 'owner', 'seen_ms')
else
  redis.call('SET', lease, token, 'PX', lease_ms)
  alive()
end
return 1
