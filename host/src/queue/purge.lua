-- Deletes a piece of what waits, never what is in flight.
-- KEYS 1: where it waits   2: state, unless that is in another slot   3: for
--   delayed messages the hash of their bodies
-- ARGV 1: how: waiting (a stream), list, scored (a sorted set)   2: how many
--   at most   3: group   4: for a stream the last id to delete
-- Returns how many were deleted, and how many other groups read the stream.
-- Afterwards `purged` in the state has counted them.
local key, limit, group = KEYS[1], tonumber(ARGV[2]), ARGV[3]
local purge = {}

function purge.waiting()
  local behind, others = waits_behind(key, KEYS[2], group)
  if not behind or not is_behind(ARGV[4], behind) then return 0, others end
  local ids = {}
  for _, entry in ipairs(redis.call('XRANGE', key, '(' .. behind, ARGV[4], 'COUNT', limit)) do
    ids[#ids + 1] = entry[1]
  end
  if #ids == 0 then return 0, others end
  return redis.call('XDEL', key, unpack(ids)), others
end

function purge.list()
  if redis.call('TYPE', key).ok ~= 'list' then return 0, 0 end
  local length = redis.call('LLEN', key)
  redis.call('LTRIM', key, limit, -1)
  remember_list(key, KEYS[2])
  return math.min(length, limit), 0
end

function purge.scored()
  local members = redis.call('ZRANGE', key, 0, limit - 1)
  if #members == 0 then return 0, 0 end
  redis.call('ZREM', key, unpack(members))
  if KEYS[3] then redis.call('HDEL', KEYS[3], unpack(members)) end
  return #members, 0
end

local purged, others = purge[ARGV[1]]()
if purged > 0 and KEYS[2] then redis.pcall('HINCRBY', KEYS[2], 'purged', purged) end
return { purged, others }
