-- Extends the claims of messages in flight, together with their leases.
-- KEYS 1: dedup:claims
-- ARGV 1: how long they last, in ms   then for each: hash of its key, first entry
-- Returns how many claims are still theirs. Claims that were freed stay free, because
-- their messages may have been settled meanwhile, and none is made shorter.
local claims, until_ms, hashes = KEYS[1], now_ms() + tonumber(ARGV[1]), {}
for i = 2, #ARGV, 2 do hashes[#hashes + 1] = ARGV[i] end
local extended = { 'HSET', claims }
for i, text in ipairs(redis.call('HMGET', claims, unpack(hashes))) do
  local first = ARGV[2 * i + 1]
  if text and is_of(text, first) then
    extended[#extended + 1] = hashes[i]
    extended[#extended + 1] = claim_text(math.max(claim_end(text), until_ms), first)
  end
end
if #extended == 2 then return 0 end
-- At maxmemory a script may write what takes memory only after it has written.
redis.call('HDEL', claims, '')
redis.call(unpack(extended))
keep_until(claims, until_ms + CLAIM_GRACE_MS)
return (#extended - 2) / 2
