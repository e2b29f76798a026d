-- Deletes a piece of what waits, never what is in flight.
-- KEYS 1: where it waits   2: state, unless that is in another slot   3: for
--   delayed messages the hash of their bodies
-- ARGV 1: how: waiting (a stream), or whole (a list or sorted set, all at once)
--   2: group   3: for a stream the last id to delete   4: how many at most
--   5: how many bytes: who has brought as many is the last
-- Returns how many were deleted, and how many other groups read the stream.
-- Afterwards `purged` in the state has counted them.
local key, group = KEYS[1], ARGV[2]
local purge = {}

-- Only what is read tells its id: few at once, and one at first.
local AT_ONCE_MAX = 16

function purge.waiting()
  local behind, others = waits_behind(key, KEYS[2], group)
  if not behind or not is_behind(ARGV[3], behind) then return 0, others end
  local ids, limit, bytes_left, at_once = {}, tonumber(ARGV[4]), tonumber(ARGV[5]), 1
  while #ids < limit and bytes_left > 0 do
    local count = math.min(at_once, limit - #ids)
    local entries = redis.call('XRANGE', key, '(' .. behind, ARGV[3], 'COUNT', count)
    for _, entry in ipairs(entries) do
      ids[#ids + 1], behind = entry[1], entry[1]
      for _, text in ipairs(entry[2]) do bytes_left = bytes_left - #text end
    end
    if #entries < count then break end
    at_once = math.min(at_once * 2, AT_ONCE_MAX)
  end
  if #ids == 0 then return 0, others end
  return redis.call('XDEL', key, unpack(ids)), others
end

-- What is there, and nothing that comes meanwhile at whatever end. Nothing is
-- read, and what it takes to free much is done beside the server's own thread.
function purge.whole()
  local kind, count = redis.call('TYPE', key).ok, 0
  if kind == 'list' then
    count = redis.call('LLEN', key)
  elseif kind == 'zset' then
    count = redis.call('ZCARD', key)
  end
  if count == 0 then return 0, 0 end
  redis.call('UNLINK', key)
  if KEYS[3] then redis.call('UNLINK', KEYS[3]) end
  if kind == 'list' then remember_list(key, KEYS[2]) end
  return count, 0
end

local purged, others = purge[ARGV[1]]()
if purged > 0 and KEYS[2] then redis.pcall('HINCRBY', KEYS[2], 'purged', purged) end
return { purged, others }
