-- Finds what Redis has delivered to this process and the process does not
-- hold: the reply was lost on the way, and a read of new messages would never
-- show it again. To be called while no read is under way.
-- KEYS 1: stream
-- ARGV 1: group   2: me   3: idle ms that marks what was given back   4..: the
--   ids that I hold
-- Returns { id, me, deliveries, { field, value, ... } } for each. Afterwards
-- each is fresh, with its delivery count as before, since nobody has run it;
-- or one more, if it was given back and is now taken again.
local held, strays, mark = {}, {}, tonumber(ARGV[3])
for i = 4, #ARGV do held[ARGV[i]] = true end
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100000, ARGV[2])) do
  if not held[row[1]] then
    local count = row[3] >= mark and row[4] + 1 or math.max(row[4], 1)
    local entry = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, row[1], 'RETRYCOUNT', count)[1]
    if entry then strays[#strays + 1] = { row[1], row[2], count, entry[2] } end
  end
end
return strays
