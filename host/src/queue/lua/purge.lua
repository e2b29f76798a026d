-- Deletes a batch of waiting messages, never messages in flight.
-- KEYS 1: the key with the messages   2: state, unless it is in another slot
--   3: dedup:claims, for streams and for our delayed messages   4: for our delayed
--   messages the hash of their bodies
-- ARGV 1: the strategy: waiting (a stream), delayed (ours), or whole (a list or
--   sorted set at once)   2: group   3: for a stream the last id to delete   4: the
--   most messages of the batch   5: the bytes after which it ends
-- Returns how many were deleted, and how many other groups read the stream.
-- Afterwards their claims are free, and `purged` in the state has counted them.
local key, group = KEYS[1], ARGV[2]
local purge = {}

-- An id is known only after the entry was read, so few are read at once, and one
-- at first.
local READ_MAX = 16

-- Only a message that has run has a claim, and its fields say which.
local function claim_in(fields)
  local claim = {}
  for i = 1, #fields, 2 do claim[fields[i]] = fields[i + 1] end
  return claim['gw-dedup'] and claim['gw-first'] and { claim['gw-dedup'], claim['gw-first'] }
end

local function free_all(held)
  for _, claim in ipairs(held) do free_claim(KEYS[3], claim[1], claim[2]) end
end

function purge.waiting()
  local behind, others = waits_behind(key, KEYS[2], group)
  if not behind or not is_behind(ARGV[3], behind) then return 0, others end
  local ids, held, limit, bytes_left, read_count = {}, {}, tonumber(ARGV[4]), tonumber(ARGV[5]), 1
  while #ids < limit and bytes_left > 0 do
    local count = math.min(read_count, limit - #ids)
    local entries = redis.call('XRANGE', key, '(' .. behind, ARGV[3], 'COUNT', count)
    for _, entry in ipairs(entries) do
      ids[#ids + 1], behind = entry[1], entry[1]
      for _, text in ipairs(entry[2]) do bytes_left = bytes_left - #text end
      held[#held + 1] = claim_in(entry[2]) or nil
    end
    if #entries < count then break end
    read_count = math.min(read_count * 2, READ_MAX)
  end
  if #ids == 0 then return 0, others end
  local deleted = redis.call('XDEL', key, unpack(ids))
  free_all(held)
  return deleted, others
end

-- UNLINK deletes exactly what the key contains now, reads nothing, and frees the
-- memory in another thread of the server.
function purge.whole()
  local kind, count = redis.call('TYPE', key).ok, 0
  if kind == 'list' then
    count = redis.call('LLEN', key)
  elseif kind == 'zset' then
    count = redis.call('ZCARD', key)
  end
  if count == 0 then return 0, 0 end
  redis.call('UNLINK', key)
  if KEYS[4] then redis.call('UNLINK', KEYS[4]) end
  if kind == 'list' then remember_list(key, KEYS[2]) end
  return count, 0
end

-- Where nothing has a claim, nothing needs to be read.
function purge.delayed()
  if redis.call('EXISTS', KEYS[3]) == 0 then return purge.whole() end
  local body, bytes_left, tokens, held = KEYS[4], tonumber(ARGV[5]), {}, {}
  for _, name in ipairs(redis.call('ZRANGE', key, 0, tonumber(ARGV[4]) - 1)) do
    if bytes_left <= 0 then break end
    local packed = redis.call('HGET', body, name)
    tokens[#tokens + 1] = name
    bytes_left = bytes_left - #(packed or '')
    held[#held + 1] = packed and claim_in(cmsgpack.unpack(packed)) or nil
  end
  if #tokens == 0 then return 0, 0 end
  local deleted = redis.call('ZREM', key, unpack(tokens))
  redis.call('HDEL', body, unpack(tokens))
  free_all(held)
  return deleted, 0
end

local purged, others = purge[ARGV[1]]()
if purged > 0 and KEYS[2] then redis.pcall('HINCRBY', KEYS[2], 'purged', purged) end
return { purged, others }
