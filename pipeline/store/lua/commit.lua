-- Moves the head: all or nothing. ARGV: token, name, parent ('' for none), ref, version, keyframe ('' where it is one),
-- manifest, lineage. The number may leave others out, but is higher than any that was used.
-- Returns {'done'}, {'fenced'}, {'moved'} or {'missing', digest, ...}.
local token, name, parent, ref, version, keyframe, manifest, entry = unpack(ARGV)
local now = redis.call('GET', head) or ''
if now == ref then
  return {'done'}  -- an earlier try went through and its answer was lost
end
if not held(token) then
  return {'fenced'}
end
if now ~= parent or tonumber(redis.call('GET', counter) or 0) >= tonumber(version) then
  return {'moved'}
end
local named, missing = objects(cjson.decode(manifest)), {'missing'}
for _, digest in ipairs(named) do
  if redis.call('EXISTS', family .. 'tensor:' .. digest) == 0 then
    missing[#missing + 1] = digest
  end
end
if #missing > 1 then
  return missing
end
-- The first write is one that Redis refuses at its maxmemory: then nothing is written at all.
redis.call('SET', model .. 'manifest:' .. version, manifest)
for _, digest in ipairs(named) do
  if redis.call('HINCRBY', refs, digest, 1) == 1 then
    redis.call('PERSIST', family .. 'tensor:' .. digest)
  end
end
redis.call('HSET', lineage, version, entry)
redis.call('ZADD', versions, version, ref)
if keyframe ~= '' then
  redis.call('HSET', keyframes, ref, keyframe)
end
redis.call('SET', counter, version)
redis.call('SET', head, ref)
announce('commit', name, ref)
return {'done'}
