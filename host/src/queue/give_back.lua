-- Gives back what this process has taken and not begun, at its end.
-- KEYS 1: stream
-- ARGV 1: group   2: me   3: idle ms that marks what was given back   4..: the
--   ids that I still run and keep
-- Returns how many. Afterwards anybody may take them over at once, in place,
-- and this delivery does not count.
local kept, given, mark = {}, 0, tonumber(ARGV[3])
for i = 4, #ARGV do kept[ARGV[i]] = true end
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 100000, ARGV[2])) do
  -- What was given back before may still be in my name.
  if not kept[row[1]] and row[3] < mark - 1000 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, row[1],
      'IDLE', ARGV[3], 'RETRYCOUNT', math.max(row[4] - 1, 0), 'JUSTID')
    given = given + 1
  end
end
return given
