-- Takes over messages whose owner has let its lease run out. Costs what is in
-- flight, never what is waiting.
-- KEYS 1: stream
-- ARGV 1: group   2: me   3: idle ms for owners that renew   4: idle ms for the
--   original's consumers, which never do   5: how many at most
-- Returns { id, previous owner, deliveries, { field, value, ... } } for each.
-- Afterwards each is mine, with its delivery count one higher.
local key, group, me = KEYS[1], ARGV[1], ARGV[2]
local lease, legacy, limit = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local taken, from = {}, '-'
while #taken < limit do
  local rows = redis.call('XPENDING', key, group, 'IDLE', math.min(lease, legacy), from, '+', 100)
  for _, row in ipairs(rows) do
    local id, owner, idle, deliveries = row[1], row[2], row[3], row[4]
    local needed = string.match(owner, '^consumer%-%d+$') and legacy or lease
    if owner ~= me and idle >= needed and #taken < limit then
      -- An entry that was deleted leaves the pending list here and is not returned.
      local entry = redis.call('XCLAIM', key, group, me, needed, id)[1]
      if entry then taken[#taken + 1] = { id, owner, deliveries + 1, entry[2] } end
    end
    from = '(' .. id
  end
  if #rows < 100 then break end
end
return taken
