-- Writes down that a message is about to run alone.
-- KEYS 1: stream   2: suspects
-- ARGV 1: group   2: me   3: the entry's id   4: its name among the suspects
--   5: for how many seconds it is remembered, in case nobody removes it
-- Returns how many workers in a row have written it down, me included. Afterwards
-- its lease is fresh, if it is mine. May be sent twice: who writes it down again
-- lives, and was not lost with it.
--
-- The renewal stands first for another reason too: it is never refused at
-- maxmemory, and a script that has written may go on to do so.
local row = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if row and row[2] == ARGV[2] then
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
end
local by = ARGV[4] .. ':by'
local is_again = redis.call('HGET', KEYS[2], by) == ARGV[2]
local count = redis.call('HINCRBY', KEYS[2], ARGV[4], is_again and 0 or 1)
redis.call('HSET', KEYS[2], by, ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return count
