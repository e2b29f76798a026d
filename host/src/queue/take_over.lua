-- Takes over messages whose owner has let its lease run out. Costs what is in
-- flight, never what is waiting.
-- KEYS 1: stream
-- ARGV 1: group   2: me   3: idle ms for owners that renew   4: idle ms for the
--   original's consumers, which never do   5: how many at most
--   6: what the clock should show in Unix ms, 0 if unknown   7: how far it may
--   be off   8: no more once they had so many bytes
-- Returns { now in Unix ms, how many others have in flight, { id, previous
-- owner, deliveries, { field, value, ... } } ... }. Afterwards each of these is
-- mine, with its delivery count one higher. After a step of the clock nothing
-- is taken over: idle times mean nothing then.
local key, group, me = KEYS[1], ARGV[1], ARGV[2]
local lease, legacy, limit = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local bytes_left = tonumber(ARGV[8])
local time, expected = redis.call('TIME'), tonumber(ARGV[6])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if expected > 0 and math.abs(now - expected) > tonumber(ARGV[7]) then return { now, -1 } end
local taken, others, from = { now, 0 }, 0, '-'

local function has_room()
  return #taken - 2 < limit and bytes_left > 0
end

while has_room() do
  local rows = redis.call('XPENDING', key, group, from, '+', 100)
  for _, row in ipairs(rows) do
    local id, owner, idle, deliveries = row[1], row[2], row[3], row[4]
    if owner ~= me then
      local needed = string.match(owner, '^consumer%-%d+$') and legacy or lease
      if idle >= needed and has_room() then
        -- An entry that was deleted leaves the pending list here and is not returned.
        local entry = redis.call('XCLAIM', key, group, me, needed, id)[1]
        for _, text in ipairs(entry and entry[2] or {}) do bytes_left = bytes_left - #text end
        if entry then taken[#taken + 1] = { id, owner, deliveries + 1, entry[2] } end
      else
        others = others + 1
      end
    end
    from = '(' .. id
  end
  if #rows < 100 then break end
  -- What was not looked at may be others' too.
  if not has_room() then others = others + 1 end
end
taken[2] = others
return taken
