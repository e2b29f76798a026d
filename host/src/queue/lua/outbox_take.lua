-- Takes a batch of the outbox: first entries that another worker took and did not
-- relay in time, then new ones.
-- KEYS 1: outbox
-- ARGV 1: group   2: our consumer   3: the idle ms after which a taken entry may be
--   taken again   4: the cursor among the taken entries, 0-0 for the start, or
--   empty to skip them   5: the most entries of the batch   6: the bytes after
--   which it ends
-- Returns { the next cursor, 0-0 at the end, { id, fields } ... }. Afterwards each
-- of these entries is pending for this consumer.
local outbox, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local taken, count_left, bytes_left = { ARGV[4] }, tonumber(ARGV[5]), tonumber(ARGV[6])
if taken[1] == '' then taken[1] = '0-0' end

-- One XAUTOCLAIM skips at most ten entries that are not idle long enough.
local AUTOCLAIMS_MAX = 100

local function has_capacity()
  return count_left > 0 and bytes_left > 0
end

local function take(entries)
  for _, entry in ipairs(entries) do
    taken[#taken + 1], count_left = entry, count_left - 1
    for _, text in ipairs(entry[2]) do bytes_left = bytes_left - #text end
  end
end

for _ = 1, ARGV[4] == '' and 0 or AUTOCLAIMS_MAX do
  local page = redis.call('XAUTOCLAIM', outbox, group, consumer, ARGV[3], taken[1], 'COUNT', 1)
  taken[1] = page[1]
  take(page[2])
  if taken[1] == '0-0' or not has_capacity() then break end
end
while has_capacity() do
  local reply = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', outbox, '>')
  if not reply then break end
  take(reply[1][2])
end
return taken
