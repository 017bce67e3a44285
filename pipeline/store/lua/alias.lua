-- Points an alias at a version, or with '' removes it. ARGV: name, alias, ref. Returns 1, or 0: no such version or alias.
local name, alias, ref = unpack(ARGV)
if ref == '' then
  local before = redis.call('HGET', aliases, alias)
  if not before then
    return 0
  end
  redis.call('HDEL', aliases, alias)
  announce('alias', name, '', alias)
  return 1
end
if not redis.call('ZSCORE', versions, ref) then
  return 0
end
redis.call('HSET', aliases, alias, ref)
announce('alias', name, ref, alias)
return 1
