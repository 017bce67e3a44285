-- Takes the writer's lease if nobody holds a live one. ARGV: token, owner, lease in ms.
-- Returns the fence's counter, or false.
local token, owner, lease_ms = unpack(ARGV)
local is_taken = redis.call('EXISTS', lease) == 1
if is_taken and not held(token) then
  return false
end
redis.call('DEL', lease)  -- the first write
if not is_taken then
  redis.call('HINCRBY', fence, 'counter', 1)
  redis.call('HSET', fence, 'token', token, 'owner', owner)
  redis.call('HDEL', fence, 'stalled')
end
redis.call('SET', lease, token, 'PX', lease_ms)
alive()
return redis.call('HGET', fence, 'counter')
