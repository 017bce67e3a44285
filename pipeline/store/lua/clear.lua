-- Removes all versions, `limit` a call: the head and the aliases first, so that nobody meets a half-removed model.
-- ARGV: name, kind ('reset' keeps the version numbers, 'delete' nothing), limit.
-- Returns how many versions are left, or -1: a worker holds the model; and the objects that no version names any more.
local name, kind, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
if redis.call('EXISTS', lease) == 1 then
  return {-1, {}}
end
redis.call('HDEL', fence, 'token', 'owner', 'seen_ms')
redis.call('DEL', head, aliases)
local unnamed = {}
for _, ref in ipairs(redis.call('ZRANGE', versions, 0, limit - 1)) do
  remove(ref, unnamed)
end
local left = redis.call('ZCARD', versions)
if left == 0 then
  redis.call('UNLINK', lineage)
  if kind == 'delete' then
    redis.call('DEL', counter, fence)
  end
  announce(kind, name, '')
end
return {left, unnamed}
