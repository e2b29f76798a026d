-- Shared by the scripts that deduplicate; it precedes their text, after common.lua.
-- KEYS, ARGV: none. Returns nothing.
--
-- A claim is a field of the hash dedup:claims: from the hash of a deduplication key to
-- '<until> <first entry>'. Until then, in Redis' time in ms, only the message that had
-- this entry at first may run; its retries say so in gw-first. A claim that is past or
-- absent is free.
-- A marker is a field of the hash dedup:<n>, a slice of the window: from the hash of a
-- key to the time when a message with it has finished; n = floor(time / window).
-- The time is known only here, so the names of slices are not declared. They have the
-- hash tag of the declared keys, hence their slot.

-- A past claim is stored for a while, so that its owner can extend it after an outage.
local CLAIM_GRACE_MS = 3600000

-- Redis forgets the key at this time, or later. Returns whether that is new.
local function keep_until(key, at)
  if redis.call('PEXPIRETIME', key) >= at then return false end
  redis.call('PEXPIREAT', key, integer(at))
  return true
end

-- A claim is padded to 65 bytes: Redis stores a hash of short texts as a list, and
-- searches it from its start for each field, which makes a claim cost twice as much.
local function claim_text(until_ms, first)
  return string.format('%013.0f %-51s', until_ms, first)
end

local function claim_end(text)
  return tonumber(string.sub(text, 1, 13)) or 0
end

-- Whether the message that had this entry at first has the claim.
local function is_of(text, first)
  return string.find(text, first .. ' ', 15, true) == 15
end

-- The message that had this entry at first is not run any more.
local function free_claim(claims, hash, first)
  local text = redis.call('HGET', claims, hash)
  if text and is_of(text, first) then redis.call('HDEL', claims, hash) end
end

-- The message runs again: its copies wait until then.
local function hold_claim(claims, hash, first, until_ms)
  local text = redis.call('HGET', claims, hash)
  if not text or is_of(text, first) or claim_end(text) <= now_ms() then
    redis.call('HSET', claims, hash, claim_text(until_ms, first))
    keep_until(claims, until_ms + CLAIM_GRACE_MS)
  end
end

-- The windows whose markers may exist, each with the end of its newest slice. There
-- is more than one for a while after the manifest's window was changed.
local function known_windows(state, now)
  local windows = {}
  for window, ends in string.gmatch(redis.call('HGET', state, 'dedup-windows') or '', '(%d+):(%d+)') do
    if tonumber(ends) > now then windows[window] = ends end
  end
  return windows
end

local function slice(claims, n)
  return string.sub(claims, 1, -7) .. integer(n)
end

-- When messages with these key hashes have finished, as far as that is within the
-- window; without a window, within the one that each marker was written for.
local function finish_times(state, claims, hashes, now, window)
  local times = {}
  for text in pairs(known_windows(state, now)) do
    local known = tonumber(text)
    local n = math.floor(now / known)
    for at = n - 1, n do
      for i, time in ipairs(redis.call('HMGET', slice(claims, at), unpack(hashes))) do
        if time and now - tonumber(time) < (window or known) then times[hashes[i]] = tonumber(time) end
      end
    end
  end
  return times
end

-- Messages with these key hashes have finished now.
local function mark_finished(state, claims, hashes, window)
  local now = now_ms()
  local n = math.floor(now / window)
  local key, ends, command, time = slice(claims, n), (n + 2) * window, { 'HSET' }, integer(now)
  command[2] = key
  for i = 1, #hashes do
    command[2 * i + 1] = hashes[i]
    command[2 * i + 2] = time
  end
  redis.call(unpack(command))
  if not keep_until(key, ends) then return end
  local windows, texts = known_windows(state, now), {}
  windows[integer(window)] = integer(ends)
  for known, known_ends in pairs(windows) do texts[#texts + 1] = known .. ':' .. known_ends end
  redis.call('HSET', state, 'dedup-windows', table.concat(texts, ' '))
end
