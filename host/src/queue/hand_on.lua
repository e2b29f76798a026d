-- Gives back one message that this process can't run now.
-- KEYS 1: stream
-- ARGV 1: group   2: me   3: idle ms that marks what was given back   4: its id
-- Returns 1, or 0 where it is no longer mine. Afterwards anybody else may take
-- it over at once, in place, and this delivery does not count. May be sent twice.
local row = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[4], ARGV[4], 1)[1]
if not row or row[2] ~= ARGV[2] then return 0 end
-- What was given back before counts one delivery less already.
if row[3] >= tonumber(ARGV[3]) - 1000 then return 1 end
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[4],
  'IDLE', ARGV[3], 'RETRYCOUNT', math.max(row[4] - 1, 0), 'JUSTID')
return 1
