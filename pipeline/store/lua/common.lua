-- Put in front of every script here. KEYS[1] is the family's prefix, KEYS[2] the model's: every other key begins with
-- one of them and lies, by its {hash tag}, in the same slot.
-- At its maxmemory Redis refuses a script whose first write may take memory, and lets all others run to their end:
-- what adds a version begins with such a write, what frees memory or holds the writer's lease with one that takes none.
local family, model = KEYS[1], KEYS[2]
local head, counter, fence, lease = model .. 'head', model .. 'counter', model .. 'fence', model .. 'lease'
local versions, lineage, aliases = model .. 'versions', model .. 'lineage', model .. 'aliases'
local keyframes = model .. 'keyframes'
local refs, events = family .. 'refs', family .. 'events'

-- When the writer gave its last sign of life, by the clock of Redis.
local function alive()
  local time = redis.call('TIME')
  redis.call('HSET', fence, 'seen_ms', time[1] .. string.format('%03d', math.floor(time[2] / 1000)))
end

local function held(token)
  return redis.call('HGET', fence, 'token') == token
end

-- The digests of all objects that a manifest names, each once.
local function objects(manifest)
  local found, seen = {}, {}
  for _, group in ipairs({'serving', 'training'}) do
    for _, tensor in pairs(manifest[group]) do
      for _, part in ipairs(tensor.parts) do
        if not seen[part.digest] then
          seen[part.digest] = true
          found[#found + 1] = part.digest
        end
      end
    end
  end
  return found
end

local function announce(kind, name, ref, alias)
  local version, digest = string.match(ref, '^(%d+):(%x+)$')
  redis.call('XADD', events, 'MAXLEN', '~', 10000, '*', 'kind', kind, 'model', name,
             'version', version or '', 'digest', digest or '', 'alias', alias or '')
end

-- Removes a version; its lineage stays. Adds to `unnamed` the objects that no version of the family names any more.
-- Whoever called the script deletes them (drop.lua); if it dies before, they go away by themselves.
local function remove(ref, unnamed)
  redis.call('HDEL', keyframes, ref)
  redis.call('ZREM', versions, ref)
  local key = model .. 'manifest:' .. string.match(ref, '^%d+')
  local raw = redis.call('GET', key)
  if raw then
    for _, digest in ipairs(objects(cjson.decode(raw))) do
      if redis.call('HINCRBY', refs, digest, -1) <= 0 then
        redis.call('HDEL', refs, digest)
        redis.call('EXPIRE', family .. 'tensor:' .. digest, 3600)
        unnamed[#unnamed + 1] = digest
      end
    end
    redis.call('UNLINK', key)
  end
end
