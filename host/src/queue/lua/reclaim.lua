-- Reclaims messages whose leases have expired. Its cost depends on the messages in
-- flight, not on those that wait.
-- KEYS 1: stream
-- ARGV 1: group   2: our consumer   3: the idle ms of an expired lease   4: the
--   same for legacy consumers, which never renew   5: the most messages to
--   reclaim   6: the expected time of Redis' clock in Unix ms, 0 if unknown
--   7: the tolerance in ms   8: the bytes after which it ends
-- Returns { now in Unix ms, how many messages others have in flight, { id, previous
-- consumer, delivery count, { field, value, ... } } ... }. Afterwards each of these
-- belongs to our consumer, with its delivery count one higher. After a step of the
-- clock idle times are wrong: then it reclaims nothing and returns { now, -1 }.
local key, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local lease, legacy, limit = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local bytes_left = tonumber(ARGV[8])
local time, expected = redis.call('TIME'), tonumber(ARGV[6])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if expected > 0 and math.abs(now - expected) > tonumber(ARGV[7]) then return { now, -1 } end
local reclaimed, others, from = { now, 0 }, 0, '-'

local function has_capacity()
  return #reclaimed - 2 < limit and bytes_left > 0
end

while has_capacity() do
  local rows = redis.call('XPENDING', key, group, from, '+', 100)
  for _, row in ipairs(rows) do
    local id, owner, idle, delivery_count = row[1], row[2], row[3], row[4]
    if owner ~= consumer then
      local expired = string.match(owner, '^consumer%-%d+$') and legacy or lease
      if idle >= expired and has_capacity() then
        -- XCLAIM removes a deleted entry from the pending list and returns nothing.
        local entry = redis.call('XCLAIM', key, group, consumer, expired, id)[1]
        for _, text in ipairs(entry and entry[2] or {}) do bytes_left = bytes_left - #text end
        if entry then reclaimed[#reclaimed + 1] = { id, owner, delivery_count + 1, entry[2] } end
      else
        others = others + 1
      end
    end
    from = '(' .. id
  end
  if #rows < 100 then break end
  -- Others may also own entries of the pages that are not read.
  if not has_capacity() then others = others + 1 end
end
reclaimed[2] = others
return reclaimed
