-- Removes versions that are not the head, not one of the last `keep_last`, not one in every `keep_every` (0: none is),
-- not aliased, and not the keyframe that one of these goes back to; at most `limit` a call.
-- ARGV: token, name, keep_last, keep_every, limit. Returns what was removed, and the objects that
-- no version names any more; or false: fenced.
local token, name = ARGV[1], ARGV[2]
local keep_last, keep_every, limit = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if not held(token) then
  return false
end
local kept = {}
local function keep(ref)
  kept[ref] = true
  local keyframe = redis.call('HGET', keyframes, ref)
  if keyframe then
    kept[keyframe] = true
  end
end
keep(redis.call('GET', head) or '')
for _, ref in ipairs(redis.call('HVALS', aliases)) do
  keep(ref)
end
local all = redis.call('ZRANGE', versions, 0, -1)
local version = {}
for index, ref in ipairs(all) do
  version[ref] = tonumber(string.match(ref, '^%d+'))
  if index > #all - keep_last or (keep_every > 0 and version[ref] % keep_every == 0) then
    keep(ref)
  end
end
local removed, unnamed = {}, {}
for _, ref in ipairs(all) do
  if not kept[ref] then
    remove(ref, unnamed)
    announce('retire', name, ref)
    removed[#removed + 1] = version[ref]
    if #removed == limit then
      break
    end
  end
end
return {removed, unnamed}
