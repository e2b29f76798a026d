-- Removes one copy of a waiting message.
-- KEYS 1: the key with the message   2: state, unless it is in another slot
--   3: for a delayed message the set of due times   the last: dedup:claims, if the
--   message may have a claim
-- ARGV 1: the strategy: waiting (a stream), requeued (a pending entry that its
--   worker has requeued), list, body, scored   2: the entry's id, the item, the
--   token or the member   3: the group; for body the body's hash   4: for
--   requeued the idle ms of a requeued entry   5: the hash of its deduplication key,
--   or empty   6: its first entry
-- Returns how many were removed; 0 where the message has moved or was delivered,
-- -1 where it stays because other groups have not read it yet. Otherwise no copy
-- is left in the key, its claim is free, and `cancelled` in the state has counted the
-- removal.
local key, what = KEYS[1], ARGV[2]
local remove = {}

-- Whether another group has not read and acknowledged the entry.
local function is_unread_by_others()
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local fields = {}
    for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
    if fields.name ~= ARGV[3] then
      if is_behind(what, fields['last-delivered-id']) then return true end
      if #redis.call('XPENDING', key, fields.name, what, what, 1) > 0 then return true end
    end
  end
  return false
end

function remove.waiting()
  local behind = waits_behind(key, KEYS[2], ARGV[3])
  if not behind or not is_behind(what, behind) then return 0 end
  if #redis.call('XRANGE', key, what, what) == 0 then return 0 end
  if is_unread_by_others() then return -1 end
  return redis.call('XDEL', key, what)
end

function remove.requeued()
  local row = redis.pcall('XPENDING', key, ARGV[3], what, what, 1)[1]
  if not row or row[3] < tonumber(ARGV[4]) then return 0 end
  redis.call('XACK', key, ARGV[3], what)
  -- For our group it is removed by the acknowledgement alone.
  if is_unread_by_others() then return 1 end
  return redis.call('XDEL', key, what)
end

function remove.list()
  if redis.call('TYPE', key).ok ~= 'list' then return 0 end
  local removed = redis.call('LREM', key, 0, what)
  if removed > 0 then remember_list(key, KEYS[2]) end
  return removed
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
if removed > 0 and ARGV[5] ~= '' then free_claim(KEYS[#KEYS], ARGV[5], ARGV[6]) end
if removed > 0 and KEYS[2] then redis.pcall('HINCRBY', KEYS[2], 'cancelled', removed) end
return removed
