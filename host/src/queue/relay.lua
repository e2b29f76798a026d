-- Takes a piece of the outbox: first what somebody took and did not bring, then
-- what nobody has taken.
-- KEYS 1: out
-- ARGV 1: group   2: me   3: idle ms after which what was taken is free again
--   4: where to go on among what was taken, 0-0 for the start, or empty for not
--   at all
--   5: how many at most   6: no more once they have so many bytes
-- Returns { where to go on next, 0-0 at the end, { id, fields } ... }. Afterwards
-- each of these is pending in my name.
local out, group, me = KEYS[1], ARGV[1], ARGV[2]
local taken, room, bytes_left = { ARGV[4] }, tonumber(ARGV[5]), tonumber(ARGV[6])
if taken[1] == '' then taken[1] = '0-0' end

-- One look goes past ten that are not free.
local LOOKS_MAX = 100

local function has_room()
  return room > 0 and bytes_left > 0
end

local function take(entries)
  for _, entry in ipairs(entries) do
    taken[#taken + 1], room = entry, room - 1
    for _, text in ipairs(entry[2]) do bytes_left = bytes_left - #text end
  end
end

for _ = 1, ARGV[4] == '' and 0 or LOOKS_MAX do
  local page = redis.call('XAUTOCLAIM', out, group, me, ARGV[3], taken[1], 'COUNT', 1)
  taken[1] = page[1]
  take(page[2])
  if taken[1] == '0-0' or not has_room() then break end
end
while has_room() do
  local reply = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', 1, 'STREAMS', out, '>')
  if not reply then break end
  take(reply[1][2])
end
return taken
