-- Removes objects, but none that a version names: a commit may have come before. ARGV: digests.
for _, digest in ipairs(ARGV) do
  if redis.call('HEXISTS', refs, digest) == 0 then
    redis.call('UNLINK', family .. 'tensor:' .. digest)
  end
end
