-- Removes versions that are not the head, not one of the last `keep_last`, not one in every `keep_every` (0: none is)
-- and not aliased; at most `limit` a call. ARGV: token, name, keep_last, keep_every, limit.
-- Returns what was removed, or false: fenced.
local token, name = ARGV[1], ARGV[2]
local keep_last, keep_every, limit = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if not held(token) then
  return false
end
local kept = {[redis.call('GET', head) or ''] = true}
for _, ref in ipairs(redis.call('HVALS', aliases)) do
  kept[ref] = true
end
local removed = {}
for _, ref in ipairs(redis.call('ZRANGE', versions, 0, -keep_last - 1)) do
  local version = tonumber(string.match(ref, '^%d+'))
  if not kept[ref] and not (keep_every > 0 and version % keep_every == 0) then
    remove(ref)
    announce('retire', name, ref)
    removed[#removed + 1] = version
    if #removed == limit then
      break
    end
  end
end
return removed
