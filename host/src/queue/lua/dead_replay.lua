-- Publishes the messages of dead letters again and deletes the letters.
-- KEYS 1-7: the topic's stream, state, work, delayed, delayed:body, high, low
--   8: the dead letters
-- ARGV for each letter: id, priority (high, low, or empty), a count and as many
--   strings: the fields to set
-- Returns for each letter: 'ok', 'gone' (it does not exist any more), 'fields'
-- (it has more fields than a script can add), or an error. May be sent twice and
-- interrupted between two calls: each letter is checked, added, then deleted.
local topic, dead = topic_at(1), KEYS[8]
-- Fields about the death, and counters that start again.
local removed = {
  ['gw-reason'] = true, ['gw-error'] = true, ['gw-attempts'] = true, ['gw-source'] = true,
  ['gw-died-at'] = true, ['gw-digest'] = true, ['gw-published-at'] = true, ['gw-id'] = true,
  ['gw-attempt'] = true, ['gw-postponed'] = true, ['gw-postponed-since'] = true, ['gw-fresh'] = true,
  ['gw-first'] = true, ['gw-dedup'] = true, ['gw-parked'] = true, ['gw-crashes'] = true,
}

local function replay(id, class, set)
  local entry = redis.call('XRANGE', dead, id, id)[1]
  if not entry then return 'gone' end
  local replaced, fields = {}, {}
  for i = 1, #set, 2 do replaced[set[i]] = true end
  local old = unpacked(entry[2])
  for i = 1, #old, 2 do
    if not removed[old[i]] and not replaced[old[i]] then
      fields[#fields + 1] = old[i]
      fields[#fields + 1] = old[i + 1]
    end
  end
  for i = 1, #set do fields[#fields + 1] = set[i] end
  -- Readers of messages don't unpack fields.
  if #fields > UNPACKED_MAX then return 'fields' end
  add(target(topic, class), fields)
  redis.call('XDEL', dead, id)
  return 'ok'
end

local results, at = {}, 1
while at < #ARGV do
  local set, count = {}, tonumber(ARGV[at + 2])
  for i = 1, count do set[i] = ARGV[at + 2 + i] end
  results[#results + 1] = result_text(pcall(replay, ARGV[at], ARGV[at + 1], set))
  at = at + 3 + count
end
return results
