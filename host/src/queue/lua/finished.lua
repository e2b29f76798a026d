-- Tells when messages with these deduplication keys have finished.
-- KEYS 1: state   2: dedup:claims
-- ARGV: the hashes of the keys
-- Returns for each the time in Unix ms, or 0 where there is no marker within its
-- window. Changes nothing.
local times, found = finish_times(KEYS[1], KEYS[2], ARGV, now_ms()), {}
for i, hash in ipairs(ARGV) do found[i] = times[hash] or 0 end
return found
