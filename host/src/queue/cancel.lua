-- Removes one copy of a message from where it waits.
-- KEYS 1: where it waits   2: state, unless that is in another slot
--   3: for a delayed one the set of due times
-- ARGV 1: how: waiting (a stream), given (in a stream, and given back by the
--   worker that had taken it), list, body, scored   2: the entry's id, the item,
--   the token or the member   3: group, or for body the body's hash, or for given
--   the group and 4: the idle ms that mark what was given back
-- Returns how many were removed; 0 where it is no longer there or was taken.
-- Afterwards it is nowhere here, and `cancelled` in the state has counted it.
local key, what = KEYS[1], ARGV[2]
local remove = {}

function remove.waiting()
  local behind = waits_behind(key, KEYS[2], ARGV[3])
  if not behind or not is_behind(what, behind) then return 0 end
  return redis.call('XDEL', key, what)
end

function remove.given()
  local row = redis.pcall('XPENDING', key, ARGV[3], what, what, 1)[1]
  if not row or row[3] < tonumber(ARGV[4]) then return 0 end
  redis.call('XACK', key, ARGV[3], what)
  return redis.call('XDEL', key, what)
end

function remove.list()
  if redis.call('TYPE', key).ok ~= 'list' then return 0 end
  return redis.call('LREM', key, 0, what)
end

function remove.body()
  local packed = redis.call('HGET', key, what)
  if not packed or redis.sha1hex(packed) ~= ARGV[3] then return 0 end
  local removed = redis.call('ZREM', KEYS[3], what)
  redis.call('HDEL', key, what)
  return removed
end

function remove.scored()
  return redis.call('ZREM', key, what)
end

local removed = remove[ARGV[1]]()
if removed > 0 and KEYS[2] then redis.pcall('HINCRBY', KEYS[2], 'cancelled', removed) end
return removed
